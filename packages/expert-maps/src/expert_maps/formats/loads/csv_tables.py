# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""CSV tables: a line for each layer, a number for each expert; with or without a header and an index column.

pandas' ``to_csv`` writes a header 0 … E−1 and an index column, spreadsheets separate by ``;`` or tabs and have decimal
commas. What was taken for a header or an index is said. A column ``step`` before the layers makes steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.formats.loads.by_id import missing_layers
from expert_maps.formats.loads.counts import Counts, Form, combine
from expert_maps.formats.loads.csv_text import CsvText, split
from expert_maps.formats.loads.values import as_counts, check_axes, check_table, listed, naming, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

    Float64Array = NDArray[np.float64]

_INDEX = {"", "index", "unnamed: 0"}
_LAYER = {"layer", "layers", "layer_id", "layer_idx", "layer_index", "moe_layer"}
_STEP = {"step", "steps", "iter", "iteration", "window"}
_SUMS = {"total", "sum", "mean", "max", "min", "count", "tokens", "std"}
_AS_ROWS = "--format csv-rows if every line and column is counts"
_LAST_NUMBER = re.compile(r"(\d{1,9})\D*\Z")
_EXPERT = re.compile(r"(\d{1,9})(?:\.0)?\D*\Z")
_LONGEST_INDEX = 80  # characters of a word with a number
_SURE_ROWS = 3  # this many numbers in a row that count up are no coincidence


@dataclass(frozen=True)
class Layout:
    """Which lines and columns of a table are no counts.

    Attributes:
        header: lines before the counts, 0 or 1.
        names: what the columns before the counts are: ``step``, ``layer`` or ``index``.
        order: the columns of the counts in the order of experts, or None where they are in order.
        said: what was recognised.
        warnings: what of it is doubtful.
    """

    header: int = 0
    names: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None
    said: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


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


def text_of(document: Document, options: LoadOptions) -> CsvText:
    """Return the lines of a CSV file.

    Raises:
        LoadError: it is none, or a key was given.
    """
    if options.key is not None:
        msg = f"key is {shown(options.key)!r}; expected none: a .csv file holds a single array"
        raise LoadError(msg)
    if document.kind != "csv":
        msg = f"not CSV but {document.kind}; expected lines of numbers"
        raise LoadError(msg)
    return split(document.text)


def find_layout(text: CsvText) -> Layout:
    """Tell header and index column.

    Raises:
        LoadError: a header that does not say what its columns are.
    """
    if not text.lines:
        return Layout()
    first = text.row(0)
    separator = {";": ("separated by ;",), "\t": ("separated by tabs",)}.get(text.separator or "", ())
    if any(not text.is_number(cell) for cell in first):
        return _with_header(text, first, separator)
    second = text.row(1) if len(text.lines) > 1 else []
    is_counted = len(first) > 1 and text.floats(0) == list(range(len(first)))
    if is_counted and len(second) in {len(first), len(first) + 1}:
        names = ("index",) if len(second) > len(first) else ()
        said = (f"header 0-{len(first) - 1}", *(("index column",) if names else ()), *separator)
        short = len(first) <= _SURE_ROWS
        doubt = (
            (f"the first line, 0-{len(first) - 1}, is taken as a header; give {_AS_ROWS}",) if short else ()
        )
        return Layout(1, names, None, said, doubt)
    return _without_header(text, first, separator)


def _without_header(text: CsvText, first: Sequence[str], separator: tuple[str, ...]) -> Layout:
    number = len(text.lines)
    if len(first) < _SURE_ROWS or number < 2 or not _has_index(text):  # noqa: PLR2004 - an index needs two
        three = len(first) == _SURE_ROWS and number > 1 and all(map(str.isdecimal, first))
        doubt = "each line is taken as a layer of 3 experts; give --format sglang-csv if it is layer_id, expert_id, count"
        return Layout(said=separator, warnings=(doubt,) if three else ())
    span = f"{text.row(0)[0]}-{text.row(number - 1)[0]}"
    if number >= _SURE_ROWS:
        return Layout(0, ("layer",), None, (f"index column {span}", *separator))
    doubt = f"the first column, {span}, is taken as counts of expert 0; remove it if it is the layer"
    return Layout(said=separator, warnings=(doubt,))


def _has_index(text: CsvText) -> bool:
    start = text.row(0)[0]
    return start.isdecimal() and all(
        text.head(index, 1)[0] == str(int(start) + index) for index in range(len(text.lines))
    )


def _with_header(text: CsvText, header: Sequence[str], separator: tuple[str, ...]) -> Layout:
    if len(text.lines) == 1:
        msg = f"not numbers: there is only a header, {listed(header)}; expected a line of numbers for each layer"
        raise LoadError(msg)
    kinds: list[str] = []
    for cell in header:
        word = cell.lower()
        kind = next(
            (
                kind
                for kind, words in (("index", _INDEX), ("layer", _LAYER), ("step", _STEP))
                if word in words
            ),
            "",
        )
        if not kind:
            break
        kinds.append(kind)
    width = len(text.row(1))
    if width == len(header) + 1 and not kinds:  # as R writes it: no name above the index
        kinds, header = ["index"], ["", *header]
    experts = list(header[len(kinds) :])
    if not experts:
        msg = f"the header {listed(header)} names no experts; expected a column for each"
        raise LoadError(msg)
    order, doubt = _order(experts)
    said = ("header", *(("index column",) if kinds else ()), *separator)
    if order is not None:
        said += ("columns put in the order of their expert ids",)
    return Layout(1, tuple(kinds), order, said, doubt)


def _order(experts: Sequence[str]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    ends = [_EXPERT.search(cell[-_LONGEST_INDEX:]) for cell in experts]
    ids = [int(end[1]) if end else -1 for end in ends]
    strange = [cell for cell, number in zip(experts, ids, strict=True) if number < 0]
    if strange and (len(strange) < len(experts) or any(cell.lower() in _SUMS for cell in strange)):
        msg = (
            f"the header has {listed([repr(shown(cell)) for cell in strange])} among its experts; expected a column for "
            f"each expert, named 0 … {len(experts) - 1}, and before them at most step and layer"
        )
        raise LoadError(msg)
    if strange or ids == list(range(len(ids))):
        return None, ()
    if sorted(ids) == list(range(len(ids))):
        return tuple(int(index) for index in np.argsort(ids)), ()
    if ids == list(range(1, len(ids) + 1)):
        return None, (f"the header names experts 1-{len(ids)}; they are taken as experts 0-{len(ids) - 1}",)
    msg = f"the header names experts {listed(ids)}; expected each of 0 … {len(ids) - 1} once"
    raise LoadError(msg)


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
    if (column % 1).any() or (column < 0).any() or (column >= limits.MAX_LAYERS).any():
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
