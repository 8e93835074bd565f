# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which lines and columns of a CSV table are no counts: the header, and columns of steps, layers or row numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import LoadError
from expert_maps.formats.loads.values import listed, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads.csv_text import CsvText

_INDEX = {"", "index", "unnamed: 0"}
_LAYER = {"layer", "layers", "layer_id", "layer_idx", "layer_index", "moe_layer"}
_STEP = {"step", "steps", "iter", "iteration", "window"}
_SUMS = {"total", "sum", "mean", "max", "min", "count", "tokens", "std"}
_AS_ROWS = "--format csv-rows if every line and column is counts"
_EXPERT = re.compile(r"(\d{1,9})(?:\.0)?\D*\Z")
_LONGEST_INDEX = 80  # characters of a word with a number
_SURE_ROWS = 3  # this many numbers in a row that count up are no coincidence
_SURE_IDS = 8  # and as many that only go up
_ORDERED = "columns put in the order of their expert ids"


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
    numbers = text.floats(0)
    start = _ids_from(numbers)
    if start is None or len(second) not in {len(first), len(first) + 1}:
        _refuse_ids(text, numbers)
        return _without_header(text, first, separator)
    span = f"{start}-{start + len(first) - 1}"
    if len(first) <= _SURE_ROWS and numbers != list(range(len(first))):
        doubt = f"the first line, {listed(first)}, is taken as counts, not as a header of the experts {span}; remove it if it is one"
        plain = _without_header(text, first, separator)
        return replace(plain, warnings=(*plain.warnings, doubt))
    names = ("index",) if len(second) > len(first) else ()
    order, doubts = _order(first)
    said = [f"header {span}", *(("index column",) if names else ()), *separator]
    if order is not None:
        said.append(_ORDERED)
    if len(first) <= _SURE_ROWS:
        doubts = (*doubts, f"the first line, {span}, is taken as a header; give {_AS_ROWS}")
    return Layout(1, names, order, tuple(said), doubts)


def _ids_from(numbers: Sequence[float]) -> int | None:
    """Return 0 or 1 where numbers are all ids of experts from there, in any order; else None."""
    if len(numbers) < 2:  # noqa: PLR2004 - a single number may be anything
        return None
    ordered = sorted(numbers)
    return next((start for start in (0, 1) if ordered == list(range(start, start + len(numbers)))), None)


def _refuse_ids(text: CsvText, numbers: Sequence[float]) -> None:
    """Refuse a first line of different whole numbers that only go up, which no counts do: ids, and some are missing.

    Raises:
        LoadError: it is such, and the next line is not.
    """
    if len(numbers) < _SURE_IDS or len(text.lines) < 2 or not _go_up(numbers):  # noqa: PLR2004 - a header heads something
        return
    if not _go_up(text.floats(1)):
        msg = (
            f"the first line, {listed([f'{number:g}' for number in numbers])}, goes up as a header of experts does that lacks "
            f"some; expected each of 0 … E-1 once (give {_AS_ROWS})"
        )
        raise LoadError(msg)


def _go_up(numbers: Sequence[float]) -> bool:
    return all(number % 1 == 0 for number in numbers) and all(a < b for a, b in pairwise(numbers))


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
        said += (_ORDERED,)
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
    start = _ids_from(ids) if len(ids) > 1 else None
    order = None if ids == sorted(ids) else tuple(int(index) for index in np.argsort(ids))
    if start == 1:
        return order, (f"the header names experts 1-{len(ids)}; they are taken as experts 0-{len(ids) - 1}",)
    if start == 0:
        return order, ()
    msg = f"the header names experts {listed(ids)}; expected each of 0 … {len(ids) - 1} once"
    raise LoadError(msg)
