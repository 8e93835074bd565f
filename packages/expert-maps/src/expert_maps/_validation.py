# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Argument checks shared by the public entry points."""

from __future__ import annotations

import operator
from typing import SupportsFloat, SupportsIndex, cast

from expert_maps.errors import ExpertMapsError, LayoutError

INT32_MAX = 2**31 - 1


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
        msg = f"{name} is {value!r}; expected an integer"
        raise error(msg)
    number = operator.index(cast("SupportsIndex", value))
    if number < minimum or number > maximum:
        limit = f"at least {minimum}" if number < minimum else f"at most {maximum}"
        msg = f"{name} is {number}; expected {limit}"
        raise error(msg)
    return number


def as_tolerance(value: object) -> float:
    """Return ``value`` as a float in (0, 1], or raise naming it.

    Raises:
        LayoutError: it is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsFloat) or isinstance(value, str):
        msg = f"tolerance is {value!r}; expected a number"
        raise LayoutError(msg)
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError) as error:
        msg = f"tolerance is {value!r}; expected a number"
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


def nearest_multiples(total: int, base: int, ep_size: int) -> list[int]:
    """Return the redundancies nearest to ``total - base`` that make the total divide by ``ep_size``.

    The nearest below comes first, where one exists (a redundancy is never negative).
    """
    below = total - total % ep_size
    return [count - base for count in (below, below + ep_size) if count >= base]
