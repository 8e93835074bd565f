# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What readers of maps check of the numbers in a file, before any array is made of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError, printable
from expert_maps.validation import array_of_lists

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

_SHOWN = 40
_FEW = 8


def show(value: object) -> str:
    """Return a value as JSON, cut so that a message stays one line."""
    text = json.dumps(value, default=str) if not isinstance(value, (list, dict)) else _shallow(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _shallow(value: list[object] | dict[object, object]) -> str:
    # Only as much of a large value as is shown.
    few = value[:_SHOWN] if isinstance(value, list) else dict(list(value.items())[:3])
    try:
        return json.dumps(few, default=str)
    except (TypeError, ValueError, RecursionError):
        return "[...]" if isinstance(value, list) else "{...}"


def is_int(value: object) -> bool:
    """Whether a value is an integer that fits 64 bits: no expert has an id beyond."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def as_int(value: object, what: str, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
    """Return an integer of a file.

    Raises:
        FormatError: it is none, or not in [minimum, maximum].
    """
    if not is_int(value) or not minimum <= cast("int", value) <= maximum:
        msg = f"{what} is {show(value)}; expected an integer from {minimum} to {maximum}"
        raise FormatError(msg)
    return cast("int", value)


def warn_of_unknown(found: Iterable[object], known: Collection[str]) -> tuple[str, ...]:
    """Return a warning where an object has other keys than those that are read: one of them may be a slip of the pen."""
    others = [str(key) for key in found if key not in known]
    if not others:
        return ()
    shown = ", ".join(f"'{printable(key, _SHOWN)}'" for key in others[:_FEW])
    more = f" and {len(others) - _FEW} more" if len(others) > _FEW else ""
    return (f"not known, and not looked at: {shown}{more}",)


def int_table(value: object, what: str) -> NDArray[np.int64]:
    """Return a table of a file, [rows, columns], as int64.

    Args:
        value: a list of equally long lists of integers, or an array of two axes.
        what: what messages call it.

    Raises:
        FormatError: it is no such table, empty, or larger than `limits` allow.
    """
    if isinstance(value, np.ndarray):
        return int_array(value, what, 2)
    if not isinstance(value, list) or not value:
        msg = f"{what} is {show(value)}; expected a list of rows, one a layer"
        raise FormatError(msg)
    columns = len(value[0]) if isinstance(value[0], list) else 0
    _limit(what, (len(value), columns))
    for index, row in enumerate(value):
        if not isinstance(row, list) or not row:
            msg = f"{what}[{index}] is {show(row)}; expected a list of integers"
            raise FormatError(msg)
        if len(row) != columns:
            msg = f"{what}[{index}] has {len(row)} entries; expected {columns}, as row 0 has"
            raise FormatError(msg)
        for slot, expert in enumerate(row):
            if not is_int(expert):
                msg = f"{what}[{index}][{slot}] is {show(expert)}; expected an integer"
                raise FormatError(msg)
    return np.array(value, dtype=np.int64)


def int_array(value: object, what: str, ndim: int) -> NDArray[np.int64]:
    """Return an array of a file as int64.

    Args:
        value: an array, or nested lists of integers.
        what: what messages call it.
        ndim: how many axes it must have.

    Raises:
        FormatError: another number of axes, no integers, empty, or larger than `limits` allow.
    """

    def check_shape(shape: Sequence[int]) -> None:
        if len(shape) != ndim or 0 in shape:
            msg = f"{what} is of shape {list(shape)}; expected {ndim} axes, none of them empty"
            raise FormatError(msg)
        _limit(what, tuple(shape))

    if isinstance(value, list):
        return array_of_lists(what, value, FormatError, check_shape=check_shape, whole=True)
    if not isinstance(value, np.ndarray):
        msg = f"{what} is {show(value)}; expected an array of {ndim} axes"
        raise FormatError(msg)
    check_shape(value.shape)
    if value.dtype.kind not in "iu" or (value.dtype.kind == "u" and int(value.max()) >= 2**63):
        msg = f"{what} has dtype {value.dtype}; expected integers of at most 64 bits"
        raise FormatError(msg)
    return value.astype(np.int64)


def _limit(what: str, shape: tuple[int, ...]) -> None:
    total = 1
    for size in shape:
        total *= size
    most = limits.MAX_SLOTS if len(shape) <= 2 else limits.MAX_COPIES  # noqa: PLR2004 - rows of slots
    if shape[0] > limits.MAX_LAYERS:
        msg = f"{what} has {shape[0]} rows; expected at most {limits.MAX_LAYERS}, one a layer"
        raise FormatError(msg)
    if total > most:
        msg = f"{what} has {total} entries, shape {list(shape)}; expected at most {most}"
        raise FormatError(msg)
