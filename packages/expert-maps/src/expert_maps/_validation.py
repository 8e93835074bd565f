# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Argument checks shared by the public entry points."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from expert_maps.errors import ExpertMapsError

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
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        msg = f"{name} is {value!r}; expected an integer"
        raise error(msg)
    number = operator.index(value)
    if number < minimum or number > maximum:
        limit = f"at least {minimum}" if number < minimum else f"at most {maximum}"
        msg = f"{name} is {number}; expected {limit}"
        raise error(msg)
    return number


def as_index(name: str, value: object, size: int) -> int:
    """Return ``value`` as an int in [0, size), or raise naming it."""
    number = as_count(name, value, minimum=-INT32_MAX)
    if not 0 <= number < size:
        msg = f"{name} is {number}; expected one of 0 … {size - 1}"
        raise ExpertMapsError(msg)
    return number


def nearest_multiples(total: int, base: int, ep_size: int) -> list[int]:
    """Return the redundancies nearest to ``total - base`` that make the total divide by ``ep_size``.

    The nearest below comes first, where one exists (a redundancy is never negative).
    """
    below = total - total % ep_size
    return [count - base for count in (below, below + ep_size) if count >= base]
