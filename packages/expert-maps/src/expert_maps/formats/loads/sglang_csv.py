# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""CSV files of SGLang's first recorder: ``layer_id,expert_id,count``, a file for each rank, to be added.

Source: sglang 0.4 ``_ExpertDistributionRecorder.dump_record``; only experts that had a token are written. Without the
header three columns of integers are taken for it where layers repeat and no pair of layer and expert does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import LoadError
from expert_maps.formats.loads import by_id
from expert_maps.formats.loads.counts import Counts, Form
from expert_maps.formats.loads.csv_text import CsvText, split
from expert_maps.formats.loads.values import naming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

    Float64Array = NDArray[np.float64]

_HEADER = [
    ("layer_id", "layer", "layer_idx"),
    ("expert_id", "expert", "expert_idx"),
    ("count", "counts", "tokens"),
]


def _has_header(first: Sequence[str]) -> bool:
    return len(first) == len(_HEADER) and all(
        cell.lower() in names for cell, names in zip(first, _HEADER, strict=True)
    )


def is_triples(text: CsvText) -> bool:
    """Say whether lines are a layer, an expert and its count."""
    if not text.lines or len(text.row(0)) != len(_HEADER):
        return False
    if _has_header(text.row(0)):
        return True
    rows = [text.row(index) for index in range(len(text.lines))]
    if any(len(row) != len(_HEADER) or not all(map(str.isdecimal, row)) for row in rows):
        return False
    pairs = [(int(row[0]), int(row[1])) for row in rows]
    layers = [layer for layer, _ in pairs]
    # A dump goes layer by layer: few runs of the same id, each of several lines.
    runs = 1 + sum(a != b for a, b in pairwise(layers))
    return len(set(pairs)) == len(pairs) and runs == len(set(layers)) and 2 * runs <= len(pairs)


def _matches(document: Document) -> bool:
    return document.kind == "csv" and is_triples(split(document.text))


def _read(documents: Sequence[Document], options: LoadOptions) -> Counts:
    if options.files == "steps":
        msg = "--files is steps; expected ranks: SGLang's CSV files are one for each rank, and are added"
        raise LoadError(msg)
    tables = []
    for document in documents:
        with naming(document.name):
            tables.append(_triples(document, options))
    lines = np.concatenate(tables)
    ids = lines[:, :2].astype(np.int64)
    table, labels = by_id.tabulate(ids[:, 0], ids[:, 1], lines[:, 2], options)
    details = (f"{len(documents)} files of ranks, added",) if len(documents) > 1 else ()
    return Counts(
        table[None], by="expert", labels=labels, details=details, warnings=by_id.missing_layers(labels)
    )


def _triples(document: Document, options: LoadOptions) -> Float64Array:
    if options.key is not None:
        msg = f"key is {options.key!r}; expected none: a CSV file holds a single array"
        raise LoadError(msg)
    if document.kind != "csv":
        msg = f"not CSV but {document.kind}; expected lines of layer_id,expert_id,count"
        raise LoadError(msg)
    text = split(document.text)
    start = 1 if text.lines and _has_header(text.row(0)) else 0
    for index in range(start, len(text.lines)):
        row = text.row(index)
        if len(row) != len(_HEADER) or not (row[0].isdecimal() and row[1].isdecimal()):
            msg = f"line {text.numbers[index]} is no layer_id,expert_id,count"
            raise LoadError(msg)
    lines = np.array([text.floats(index) for index in range(start, len(text.lines))]).reshape(-1, 3)
    pairs = np.unique(lines[:, :2], axis=0)
    if len(pairs) != len(lines):
        msg = "a pair of layer and expert stands twice; expected one file for each rank, given together"
        raise LoadError(msg)
    return lines


SGLANG_CSV = Form("sglang-csv", "SGLang CSV (layer_id, expert_id, count)", _matches, _read)
