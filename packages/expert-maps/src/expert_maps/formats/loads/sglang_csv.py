# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""CSV files of SGLang's first recorder: ``layer_id,expert_id,count``, a file for each rank, to be added.

Source: sglang 0.4 ``_ExpertDistributionRecorder.dump_record``; only experts that had a token are written. Without the
header three columns of integers are taken for it where layers repeat and no pair of layer and expert does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.formats.loads import by_id
from expert_maps.formats.loads.counts import Counts, Form
from expert_maps.formats.loads.csv_tables import text_of
from expert_maps.formats.loads.csv_text import CsvText, split
from expert_maps.formats.loads.values import naming, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

    Float64Array = NDArray[np.float64]
    Int64Array = NDArray[np.int64]

_ID_DIGITS = 9
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
    columns = _columns(text, 0) if all(map(str.isdecimal, text.row(0))) else None
    if columns is None or not all(map(str.isdecimal, columns[2])):
        return False
    layers, experts = (np.array(list(map(int, column)), dtype=np.int64) for column in columns[:2])
    # A dump goes layer by layer: few runs of the same id, each of several lines, and no pair twice.
    runs = 1 + int(np.count_nonzero(np.diff(layers)))
    return not _repeats(layers, experts) and runs == len(np.unique(layers)) and 2 * runs <= len(layers)


def _columns(text: CsvText, start: int) -> list[list[str]] | None:
    """Return the cells of the three columns; None if a line has others, or no ids in the first two."""
    if text.separator is None or any(
        line.count(text.separator) != len(_HEADER) - 1 for line in text.lines[start:]
    ):
        return None
    cells = [cell.strip(' "') for cell in text.separator.join(text.lines[start:]).split(text.separator)]
    columns = [cells[index :: len(_HEADER)] for index in range(len(_HEADER))]
    is_ids = all(
        all(map(str.isdecimal, column)) and max(map(len, column)) <= _ID_DIGITS for column in columns[:2]
    )
    return columns if is_ids else None


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
    text = text_of(document, options, "lines of layer_id,expert_id,count")
    start = 1 if text.lines and _has_header(text.row(0)) else 0
    columns = _columns(text, start) if len(text.lines) > start else [[], [], []]
    if columns is None or not all(map(text.is_number, columns[2])):
        raise _strange(text, start)
    ids = np.array([list(map(int, column)) for column in columns[:2]], dtype=np.int64)
    lines = np.vstack([ids, [text.number(cell) for cell in columns[2]]]).T
    if _repeats(*ids):
        pairs, times = np.unique(ids, axis=1, return_counts=True)
        layer, expert = pairs[:, int(times.argmax())].tolist()
        msg = f"layer {layer}, expert {expert} stands twice; expected one file for each rank, given together"
        raise LoadError(msg)
    return lines


def _repeats(layers: Int64Array, experts: Int64Array) -> bool:
    """Say whether a pair stands twice."""
    keys = np.sort(layers * 10**_ID_DIGITS + experts)
    return bool((keys[1:] == keys[:-1]).any())


def _strange(text: CsvText, start: int) -> LoadError:
    """Return the error that names the first line that is no triple."""
    for index in range(start, len(text.lines)):
        row = text.row(index)
        if len(row) != len(_HEADER):
            return LoadError(
                f"line {text.numbers[index]} has {counted(len(row), 'cell')}; expected layer_id,expert_id,count"
            )
        cells = zip(row, (_is_id, _is_id, text.is_number), strict=True)
        for cell in (cell for cell, is_good in cells if not is_good(cell)):
            return LoadError(
                f"not numbers: line {text.numbers[index]} has {shown(cell)!r}; expected layer_id,expert_id,count"
            )
    return LoadError(
        "the lines are separated by blanks; expected layer_id,expert_id,count with commas between"
    )


def _is_id(cell: str) -> bool:
    return cell.isdecimal() and len(cell) <= _ID_DIGITS


SGLANG_CSV = Form("sglang-csv", "SGLang CSV (layer_id, expert_id, count)", _matches, _read)
