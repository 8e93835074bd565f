# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the package's values have in common: they do not change, and are equal where their content is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray
_Owner = TypeVar("_Owner")
_Value = TypeVar("_Value")
_Number = TypeVar("_Number", bound=np.generic)


def freeze(array: NDArray[_Number]) -> NDArray[_Number]:
    """Make an array read-only, in place, and return it."""
    array.flags.writeable = False
    return array


def as_frozen(array: NDArray[_Number]) -> NDArray[_Number]:
    """Return a read-only array: this one where it is, else a copy, so that the caller's stays as it is."""
    return freeze(array.copy()) if array.flags.writeable else array


class lazy(Generic[_Owner, _Value]):  # noqa: N801 - used as `property` is
    """A property that is computed once.

    `functools.cached_property` has a lock before Python 3.12, one for all objects of a class: a process that is forked
    while another thread computes finds it held for ever. There is none here. Threads that meet compute twice, with the
    same result.
    """

    def __init__(self, compute: Callable[[_Owner], _Value]) -> None:
        """Wrap what computes the value."""
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, owner: None, kind: type[_Owner]) -> lazy[_Owner, _Value]: ...
    @overload
    def __get__(self, owner: _Owner, kind: type[_Owner]) -> _Value: ...
    def __get__(self, owner: _Owner | None, kind: type[_Owner]) -> lazy[_Owner, _Value] | _Value:
        """Compute, and leave the value where Python finds it before this is asked again."""
        if owner is None:
            return self
        value = self._compute(owner)
        if isinstance(value, np.ndarray):
            freeze(value)
        # What came first stays, so that all threads hold the same object.
        kept: _Value = owner.__dict__.setdefault(self._name, value)
        return kept


class Frozen:
    """Base of the dataclasses that hold arrays: read-only ones, also in copies and pickles, and compared by content.

    Fields that are declared with ``compare=False`` do not count.
    """

    def __post_init__(self) -> None:
        """Take over arrays: those that could be written are copied."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type] # its subclasses are dataclasses
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                object.__setattr__(self, field.name, as_frozen(value))

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields; what is computed from them is not copied."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the arrays of a copy read-only, which NumPy does not."""
        for name, value in state.items():
            object.__setattr__(self, name, freeze(value) if isinstance(value, np.ndarray) else value)

    def __eq__(self, other: object) -> bool:
        """Compare the fields; arrays by type, shape and every number."""
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = self._compared(), other._compared()
        return all(_is_same(one, another) for one, another in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        """Hash what is compared."""
        return hash((type(self).__name__, *map(_key, self._compared())))

    def _compared(self) -> list[object]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return [getattr(self, field.name) for field in fields if field.compare]


def _is_same(one: object, another: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(another, np.ndarray):
        return one.dtype == another.dtype and np.array_equal(one, another)
    return bool(one == another)


def _key(value: object) -> Hashable:
    """Return what stands for a value in a hash: equal for equal ones."""
    if not isinstance(value, np.ndarray):
        return value
    # −0 equals 0, and has other bytes.
    numbers = value + 0.0 if value.dtype.kind == "f" else value
    return (numbers.shape, numbers.tobytes())
