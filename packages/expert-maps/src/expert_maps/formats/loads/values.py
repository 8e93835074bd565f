# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers out of files: nested lists and arrays become float64 arrays, checked before they are built."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import limits
from expert_maps._layers import layers_text
from expert_maps.errors import LoadError, printable
from expert_maps.load import refuse_bad
from expert_maps.validation import array_of_lists

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Sequence

    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

LOAD_KEYS = ("load", "expert_load", "logical_count")
"""Names under which a file holds counts by logical expert."""

_DEEPEST = 4
_EXPECTED = "expected [L, E] or [steps, L, E]"


class NamedLoadError(LoadError):
    """A load error whose message names the file already."""


@contextmanager
def naming(name: str) -> Generator[None]:
    """Put the file's name before the message of a load error that has none yet."""
    try:
        yield
    except NamedLoadError:
        raise
    except LoadError as error:
        msg = f"{name}: {error}"
        raise NamedLoadError(msg) from error


def shown(name: object) -> str:
    """Return a name out of a file as a terminal may show it: short, and without control characters."""
    return printable(str(name), 80)


def listed(names: Collection[object]) -> str:
    """Return names separated by commas; a long list is cut and counted."""
    some = ", ".join(shown(name) for name, _ in zip(names, range(limits.MAX_LISTED), strict=False))
    return some + (f" and {len(names) - limits.MAX_LISTED} more" if len(names) > limits.MAX_LISTED else "")


def spans(numbers: Iterable[int]) -> str:
    """Return ascending numbers as ranges: ``0-2, 5``."""
    return listed(layers_text(list(numbers)).split(","))


def layers_named(numbers: Sequence[int]) -> str:
    """Name layers by the file's own numbers: ``layer 3``, or ``layers 0-2, 5``."""
    return f"layer{'' if len(numbers) == 1 else 's'} {spans(numbers)}"


def as_array(value: object) -> Float64Array:
    """Return numbers of any shape as float64.

    Args:
        value: an array, or nested lists of integers and floats.

    Raises:
        LoadError: ragged, too deep or too many, or something else than real numbers.
    """
    return as_numbers(value).astype(np.float64, copy=False)


def as_numbers(value: object) -> NDArray[Any]:
    """Return numbers as `as_array` does, an array in its own type.

    Raises:
        LoadError: as `as_array`.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iuf":
            msg = f"load has dtype {shown(value.dtype)}; expected integers or floats"
            raise LoadError(msg)
        check_table(value.shape)
        return value
    if not isinstance(value, list):
        msg = f"load is {shown(repr(value))}, of type {type(value).__name__}; {_EXPECTED}"
        raise LoadError(msg)
    numbers = array_of_lists("load", value, LoadError, check_shape=check_table, most_axes=_DEEPEST)
    return numbers.astype(np.float64, copy=False)


def as_counts(value: object, axes: Sequence[str] = ("step", "layer", "expert")) -> Float64Array:
    """Return counts as float64 [steps, rows, columns], each checked.

    Args:
        value: as for `as_array`, of two axes (one step) or three.
        axes: what the axes are called in messages.

    Raises:
        LoadError: another shape, or a count that is negative, NaN, infinite or absurd; its place is named.
    """
    array = as_array(value)
    if array.ndim not in {2, 3} or 0 in array.shape:
        msg = f"load has shape {list(array.shape)}; {_EXPECTED} with every axis at least 1"
        raise LoadError(msg)
    refuse_bad(array, axes[-array.ndim :])
    return array.reshape(-1, *array.shape[-2:])


def check_table(shape: Sequence[int]) -> None:
    """Refuse more numbers than a load may have, before they are allocated.

    Raises:
        LoadError: as said.
    """
    size = math.prod(int(count) for count in shape)
    if size > limits.MAX_LOAD_NUMBERS:
        msg = f"load has shape {list(shape)}, {size} numbers; expected at most {limits.MAX_LOAD_NUMBERS}"
        raise LoadError(msg)


def check_axes(layers: int, experts: int, steps: int = 1) -> None:
    """Refuse more layers or experts than any model has, and more steps than any trace.

    Raises:
        LoadError: as said.
    """
    for name, count, most in (
        ("layers", layers, limits.MAX_LAYERS),
        ("experts", experts, limits.MAX_EXPERTS),
        ("steps", steps, limits.MAX_STEPS),
    ):
        if count > most:
            msg = f"load has {count} {name}; expected at most {most}"
            raise LoadError(msg)
