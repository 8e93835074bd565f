# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""CSV tables: a line for each layer, a number for each expert; with or without a header and an index column.

pandas' ``to_csv`` writes a header 0 … E−1 and an index column, spreadsheets separate by ``;`` or tabs and have decimal
commas. What was taken for a header or an index is said. A column ``step`` before the layers makes steps.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.formats.loads.by_id import missing_layers
from expert_maps.formats.loads.counts import Counts, Form, combine
from expert_maps.formats.loads.csv_layout import Layout, find_layout
from expert_maps.formats.loads.csv_text import CsvText, split
from expert_maps.formats.loads.values import as_counts, check_axes, check_table, naming, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

    Float64Array = NDArray[np.float64]

_LAST_NUMBER = re.compile(r"(\d{1,9})\D*\Z")
_LONGEST_INDEX = 80  # characters of a word with a number


def _read(documents: Sequence[Document], options: LoadOptions) -> Counts:
    return _read_as(documents, options, is_plain=False)


def _read_rows(documents: Sequence[Document], options: LoadOptions) -> Counts:
    return _read_as(documents, options, is_plain=True)


def _read_as(documents: Sequence[Document], options: LoadOptions, *, is_plain: bool) -> Counts:
    parts = []
    for document in documents:
        with naming(document.name):
            text = text_of(document, options)
            if text.lines:
                check_axes(0, len(text.row(0)) - 3)  # with step, layer and index at most
            layout = Layout() if is_plain else find_layout(text)
            check_axes(0 if "step" in layout.names else len(text.lines) - layout.header, 0)
            check_axes(0, len(text.row(0)) - len(layout.names) if text.lines else 0)
            parts.append(_table(text, layout))
    return combine(parts, options.files)


def text_of(document: Document, options: LoadOptions, lines: str = "lines of numbers") -> CsvText:
    """Return the lines of a CSV file.

    Args:
        document: the file.
        options: what the caller says of it.
        lines: what is expected in it.

    Raises:
        LoadError: it is none, or a key was given.
    """
    if options.key is not None:
        msg = f"key is {shown(options.key)!r}; expected none: a CSV file holds a single array"
        raise LoadError(msg)
    if document.kind != "csv":
        msg = f"not CSV but {document.kind}; expected {lines}"
        raise LoadError(msg)
    return split(document.text)


def _table(text: CsvText, layout: Layout) -> Counts:
    counts = _counts_of(text, layout)
    numbers = _index_numbers(text, layout)
    if layout.order is not None:
        counts = counts[:, list(layout.order)]
    if "step" in layout.names:
        return _with_steps(numbers, counts, layout)
    labels = _labels(numbers, layout)
    if labels is None:
        return Counts(as_counts(counts), details=layout.said, warnings=layout.warnings)
    order = np.argsort(labels, kind="stable")
    ids = tuple(int(labels[row]) for row in order)
    if len(set(ids)) != len(ids):
        twice = next(a for a, b in pairwise(ids) if a == b)
        msg = (
            f"layer {twice} stands twice in the index column; expected each once, or a column step before it"
        )
        raise LoadError(msg)
    return Counts(
        as_counts(counts[order]),
        labels=ids,
        details=layout.said,
        warnings=(*layout.warnings, *missing_layers(ids)),
    )


def _counts_of(text: CsvText, layout: Layout) -> Float64Array:
    counts = text.table(layout.header, len(layout.names))
    if layout.order is not None and counts.shape[1] != len(layout.order):
        msg = f"lines have {counted(counts.shape[1], 'count')} and the header names {counted(len(layout.order), 'expert')}; expected as many"
        raise LoadError(msg)
    return counts


def _index_numbers(text: CsvText, layout: Layout) -> Float64Array:
    """Return the numbers of the columns before the counts, float64 [lines, columns]; NaN where there is none."""
    width = len(layout.names)
    rows = range(layout.header, len(text.lines)) if width else []
    found = [_index_number(text, cell) for index in rows for cell in text.head(index, width)]
    return np.array(found, dtype=np.float64).reshape(len(rows), width)


def _index_number(text: CsvText, cell: str) -> float:
    number = text.number_or_none(cell)
    if number is not None:
        return number
    # An index may be words, like layer_3: its number counts.
    match = _LAST_NUMBER.search(cell[-_LONGEST_INDEX:])
    return float(match[1]) if match else np.nan


def _labels(numbers: Float64Array, layout: Layout) -> Float64Array | None:
    if not layout.names:
        return None
    column: Float64Array = numbers[:, layout.names.index("layer") if "layer" in layout.names else 0]
    if np.isnan(column).any():
        return None
    if (column < 0).any() or (column >= limits.MAX_LAYERS).any() or (column % 1).any():
        msg = f"the index column has {column[0]:g} …; expected layer numbers below {limits.MAX_LAYERS}"
        raise LoadError(msg)
    # pandas numbers rows from 0, whatever the layers are.
    is_position = "layer" not in layout.names and (column == np.arange(len(column))).all()
    return None if is_position else column


def _with_steps(numbers: Float64Array, counts: Float64Array, layout: Layout) -> Counts:
    steps = numbers[:, layout.names.index("step")]
    layers = numbers[:, layout.names.index("layer")] if "layer" in layout.names else None
    order = np.lexsort((np.arange(len(steps)) if layers is None else layers, steps))
    _, sizes = np.unique(steps, return_counts=True)
    per_step = int(sizes[0])
    table = (
        None
        if layers is None
        else layers[order].reshape(len(sizes), -1)
        if (sizes == per_step).all()
        else None
    )
    if (sizes != per_step).any() or (
        table is not None and ((table != table[0]).any() or len(set(table[0])) != per_step)
    ):
        msg = f"steps have {sorted(set(sizes.tolist()))} layers; expected the same layers in each step, each once"
        raise LoadError(msg)
    check_table((len(sizes), per_step, counts.shape[1]))
    labels = None if table is None else tuple(int(layer) for layer in table[0])
    values = counts[order].reshape(len(sizes), per_step, -1)
    return Counts(as_counts(values), labels=labels, details=layout.said, warnings=layout.warnings)


def is_csv(document: Document) -> bool:
    """Say whether a file is CSV."""
    return document.kind == "csv"


CSV = Form("csv", "CSV", is_csv, _read)
CSV_ROWS = Form("csv-rows", "CSV", is_csv, _read_rows)
