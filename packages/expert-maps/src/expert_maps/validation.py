# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Argument checks: counts, indices and tolerances in, plain numbers out; each error names what was given and expected."""

from __future__ import annotations

import operator
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn, SupportsFloat, SupportsIndex, cast

import numpy as np

from expert_maps import limits
from expert_maps.errors import ExpertMapsError, LayoutError, show_integer, show_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

INT32_MAX = 2**31 - 1
# No array of this package has more axes; deeper lists are a mistake.
_MOST_AXES = 8
_LISTS = (list, tuple, range)
_NUMBERS = (int, float, np.integer, np.floating)


def as_count(
    name: str,
    value: object,
    minimum: int,
    maximum: int = INT32_MAX,
    error: type[ExpertMapsError] = ExpertMapsError,
) -> int:
    """Return ``value`` as an int in [minimum, maximum], or raise ``error`` naming it.

    Booleans and floats are refused: ``True`` ranks or ``4.0`` experts are mistakes upstream.
    """
    # Not `isinstance(value, SupportsIndex)`: run-time protocols cost more than some plans do.
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        msg = f"{name} is {show_value(value)}; expected an integer"
        raise error(msg)
    number = operator.index(cast("SupportsIndex", value))
    if number < minimum or number > maximum:
        limit = f"at least {minimum}" if number < minimum else f"at most {maximum}"
        msg = f"{name} is {show_integer(number)}; expected {limit}"
        raise error(msg)
    return number


def first_true(mask: NDArray[np.bool_]) -> tuple[tuple[int, ...], int] | None:
    """Return the coordinates of the first true of a mask, and how many there are; None where there is none.

    `np.argwhere` would take eight bytes for each coordinate of each.
    """
    count = int(np.count_nonzero(mask))
    if not count:
        return None
    return tuple(int(index) for index in np.unravel_index(int(mask.argmax()), mask.shape)), count


def as_tolerance(value: object) -> float:
    """Return ``value`` as a float in (0, 1], or raise naming it.

    Raises:
        LayoutError: it is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsFloat) or isinstance(value, str):
        msg = f"tolerance is {show_value(value)}; expected a number"
        raise LayoutError(msg)
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError) as error:
        msg = f"tolerance is {show_value(value)}; expected a number"
        raise LayoutError(msg) from error
    if not 0 < number <= 1:
        msg = f"tolerance is {number:g}; expected more than 0 and at most 1: a fraction of the lower bound"
        raise LayoutError(msg)
    return number


def as_index(name: str, value: object, size: int, error: type[ExpertMapsError] = ExpertMapsError) -> int:
    """Return ``value`` as an int in [0, size), or raise ``error`` naming it."""
    number = as_count(name, value, minimum=-INT32_MAX, error=error)
    if not 0 <= number < size:
        msg = f"{name} is {number}; expected one of 0 … {size - 1}"
        raise error(msg)
    return number


def check_counts(
    *,
    num_layers: int | None = None,
    num_logical_experts: int | None = None,
    ep_size: int | None = None,
    num_physical_experts: int | None = None,
    error: type[ExpertMapsError] = ExpertMapsError,
) -> None:
    """Refuse counts of a placement that are beyond the limits, alone or together.

    Args:
        num_layers: L, if known.
        num_logical_experts: E, if known.
        ep_size: R, if known.
        num_physical_experts: P, if known.
        error: what to raise.

    Raises:
        ExpertMapsError: the count and its limit are named.
    """
    single = (
        ("num_layers", num_layers, limits.MAX_LAYERS),
        ("num_logical_experts", num_logical_experts, limits.MAX_EXPERTS),
        ("ep_size", ep_size, limits.MAX_RANKS),
        ("num_physical_experts", num_physical_experts, limits.MAX_SLOTS),
    )
    for name, value, most in single:
        if value is not None:
            check_product(name, {name: value}, most, error)
    if num_layers is None:
        return
    for name, value, _ in single[1:]:
        if value is not None:
            check_product("a placement", {"num_layers": num_layers, name: value}, limits.MAX_SLOTS, error)


def check_product(
    what: str,
    counts: Mapping[str, int],
    most: int = limits.MAX_TABLE,
    error: type[ExpertMapsError] = ExpertMapsError,
) -> None:
    """Refuse a table whose size is beyond a limit.

    Args:
        what: the table, for the message.
        counts: its axes by name; their product is its size.
        most: the limit on it.
        error: what to raise.

    Raises:
        ExpertMapsError: the axes, the size and its limit are named.
    """
    # Through Python's own integers: NumPy's wrap.
    size = prod(map(int, counts.values()))
    if size <= most:
        return
    if len(counts) == 1:
        msg = f"{next(iter(counts))} is {size}; expected at most {most}"
        raise error(msg)
    factors = " · ".join(f"{name} {int(count)}" for name, count in counts.items())
    msg = f"{what} of {factors} has {size} numbers; expected at most {most}"
    raise error(msg)


def nearest_multiples(total: int, base: int, ep_size: int) -> list[int]:
    """Return the redundancies nearest to ``total - base`` that make the total divide by ``ep_size``.

    The nearest below comes first, where one exists (a redundancy is never negative).
    """
    below = total - total % ep_size
    return [count - base for count in (below, below + ep_size) if count >= base]


def as_array(name: str, value: object, error: type[ExpertMapsError] = ExpertMapsError) -> NDArray[Any]:
    """Return an array, or nested lists of numbers as one.

    Args:
        name: what messages call it.
        value: anything; numbers, truth values or arrays in lists of equal lengths, or what NumPy takes for an array.
        error: what to raise.

    Returns:
        Int64 or float64 (bool where all are true or false) of lists; else whatever the array holds, not copied.

    Raises:
        ExpertMapsError: as `array_of_lists`.
    """
    if not isinstance(value, _LISTS):
        if not hasattr(type(value), "__array__") and not isinstance(value, _NUMBERS):
            msg = f"{name} is {show_value(value)}; expected an array or lists of numbers"
            raise error(msg)
        return np.asarray(value)
    rows, shape, kinds = _walk(name, value, error, _MOST_AXES)
    if kinds and all(hasattr(kind, "__array__") and not issubclass(kind, _NUMBERS) for kind in kinds):
        try:  # a list of arrays
            return np.asarray(value)
        except ValueError as ragged:
            msg = f"{name} is ragged: {ragged}"
            raise error(msg) from ragged
    if kinds == {bool}:
        return np.array(rows, dtype=bool).reshape(shape)
    return _array(name, rows, shape, kinds, error)


def array_of_lists(
    name: str,
    value: Sequence[object],
    error: type[ExpertMapsError],
    *,
    check_shape: Callable[[Sequence[int]], object] = len,
    most_axes: int = _MOST_AXES,
    whole: bool = False,
) -> NDArray[Any]:
    """Return nested lists of numbers as an array.

    Lists are looked through before NumPy sees them: of a single long string among them it would make an array of
    strings as long, for each number one. A level at a time: an array for each list would take longer than to read them.

    Args:
        name: what messages call it.
        value: lists of equal lengths.
        error: what to raise.
        check_shape: called with the shape before anything of that size is made; it may raise.
        most_axes: how deep lists may be nested.
        whole: whether only integers are numbers.

    Returns:
        Int64 where all are integers, else float64.

    Raises:
        ExpertMapsError: ragged lists, what is no number, or an integer beyond 64 bits; the place is named.
    """
    rows, shape, kinds = _walk(name, value, error, most_axes)
    check_shape(shape)
    return _array(name, rows, shape, kinds, error, whole=whole)


def _walk(
    name: str, value: object, error: type[ExpertMapsError], most_axes: int
) -> tuple[list[Any], list[int], set[type]]:
    """Return the innermost lists in order, the shape, and the types of what is in them."""
    rows, shape = [cast("Any", value)], [len(cast("Any", value))]
    while True:
        kinds: set[type] = set()
        for row in rows:
            kinds.update(map(type, row))
        are_lists = {issubclass(kind, _LISTS) for kind in kinds}
        if True not in are_lists:
            return rows, shape, kinds
        if len(are_lists) > 1:
            _refuse_mixed(name, rows, shape, error)
        if len(shape) == most_axes:
            msg = f"{name} is nested more than {most_axes} deep; expected an array of numbers"
            raise error(msg)
        rows = list(chain.from_iterable(rows))
        length = len(rows[0])
        if len(set(map(len, rows))) > 1:
            odd = next(i for i, row in enumerate(rows) if len(row) != length)
            msg = f"{name} is ragged: {len(rows[odd])} entries at {_place(odd, shape)}; expected {length}, as the first has"
            raise error(msg)
        shape.append(length)


def _refuse_mixed(name: str, rows: list[Any], shape: list[int], error: type[ExpertMapsError]) -> NoReturn:
    is_list = isinstance(rows[0][0], _LISTS)
    entries = enumerate(chain.from_iterable(rows))
    index, entry = next((i, entry) for i, entry in entries if isinstance(entry, _LISTS) != is_list)
    found = show_value(entry) if is_list else "a list"
    expected = f"{len(rows[0][0])} entries, as the first has" if is_list else "a number, as the first is"
    msg = f"{name} is ragged: {found} at {_place(index, shape)}; expected {expected}"
    raise error(msg)


def _array(
    name: str,
    rows: list[Any],
    shape: list[int],
    kinds: set[type],
    error: type[ExpertMapsError],
    *,
    whole: bool = False,
) -> NDArray[Any]:
    known = (int, np.integer) if whole else _NUMBERS
    strange = {kind for kind in kinds if kind is bool or not issubclass(kind, known)}
    if strange:
        entries = enumerate(chain.from_iterable(rows))
        index, entry = next((i, entry) for i, entry in entries if type(entry) in strange)
        msg = (
            f"{name} has {show_value(entry)} at {_place(index, shape)}, of type {type(entry).__name__}; "
            f"expected {'integers' if whole else 'integers or floats'}"
        )
        raise error(msg)
    is_whole = all(issubclass(kind, (int, np.integer)) for kind in kinds)
    dtype = np.int64 if is_whole and kinds else np.float64
    try:
        return np.fromiter(chain.from_iterable(rows), dtype, prod(shape)).reshape(shape)
    except OverflowError as overflow:
        largest = max((number for row in rows for number in row), key=abs)
        msg = f"{name} holds {show_integer(largest)}; expected numbers of 64 bits"
        raise error(msg) from overflow


def _place(index: int, shape: list[int]) -> list[int]:
    """Return the coordinates of one of all entries."""
    return [int(i) for i in np.unravel_index(index, shape)]
