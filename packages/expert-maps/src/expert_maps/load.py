# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`ExpertLoad`: how many tokens were routed to each logical expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import limits
from expert_maps._frozen import Frozen, freeze, lazy
from expert_maps.errors import LoadError
from expert_maps.validation import as_array, as_count, check_product, first_true

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    Float64Array = NDArray[np.float64]

_AXES = ("step", "layer", "expert")

# Far beyond any count of tokens, and low enough that no sum or float32 share overflows.
MAX_LOAD = 1e30


@dataclass(frozen=True, init=False, eq=False, repr=False)
class ExpertLoad(Frozen):
    """A load trace. Read-only; to NumPy it is the array [steps, L, E].

    ``np.asarray(load)`` is `counts` itself. ``load[…]`` is what that array has there, read-only; iteration and ``len``
    go over steps. A slice of steps is an array too, which every function takes that takes a load. Two loads are equal
    where shape and every number are.

    Attributes:
        counts: float64 [steps, L, E], tokens routed to each logical expert in each step; float64 so that
            averaged loads are as welcome as counts (exact up to 2**53 tokens).
    """

    counts: Float64Array

    def __init__(self, counts: ArrayLike) -> None:
        """Validate a load.

        Args:
            counts: copied; real numbers [L, E] or [steps, L, E], from 0 to `MAX_LOAD`.

        Raises:
            LoadError: a wrong shape or type; or a value that is NaN, infinite, negative or absurd,
                whose step, layer and expert are named.
        """
        array = as_array("load", counts, LoadError)
        if array.dtype.kind not in "iuf":
            msg = f"load has dtype {array.dtype}; expected integers or floats"
            raise LoadError(msg)
        if array.ndim not in {2, 3} or 0 in array.shape:
            msg = (
                f"load has shape {list(array.shape)}; expected [L, E] or [steps, L, E] "
                "with every axis at least 1"
            )
            raise LoadError(msg)
        axes = dict(zip(("num_steps", "num_layers", "num_experts")[-array.ndim :], array.shape, strict=True))
        check_product("a load", axes, limits.MAX_LOAD_NUMBERS, LoadError)
        _refuse_bad_values(array)
        steps = array if array.ndim == len(_AXES) else array[None]
        object.__setattr__(self, "counts", freeze(np.array(steps, dtype=np.float64, order="C")))

    @property
    def num_steps(self) -> int:
        """Steps (or windows) in the trace."""
        return int(self.counts.shape[0])

    @property
    def num_layers(self) -> int:
        """L, the number of MoE layers."""
        return int(self.counts.shape[1])

    @property
    def num_experts(self) -> int:
        """E, the number of logical experts."""
        return int(self.counts.shape[2])

    @lazy
    def total(self) -> Float64Array:
        """float64 [L, E]: the sum over steps."""
        total: Float64Array = self.counts.sum(axis=0)
        return total

    def windows(self, size: int) -> ExpertLoad:
        """Sum each run of ``size`` steps; a shorter last run is kept.

        Raises:
            LoadError: ``size`` is below 1.
        """
        step = as_count("size", size, minimum=1, error=LoadError)
        starts = np.arange(0, self.num_steps, step)
        return ExpertLoad(np.add.reduceat(self.counts, starts, axis=0))

    def peak_to_mean(self) -> Float64Array:
        """Return the hottest expert's tokens over the mean, per layer: float64 [L], 1 where there are none."""
        mean = self.total.mean(axis=1)
        peak: Float64Array = self.total.max(axis=1)
        return np.divide(peak, mean, out=np.ones_like(mean), where=mean > 0)

    # An array to NumPy.

    @property
    def shape(self) -> tuple[int, int, int]:
        """(steps, L, E)."""
        return self.num_steps, self.num_layers, self.num_experts

    @property
    def ndim(self) -> int:
        """3."""
        return self.counts.ndim

    @property
    def dtype(self) -> np.dtype[np.float64]:
        """float64."""
        return self.counts.dtype

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001
        """Return `counts`; another type, or a copy that may be written, as NumPy asks for it.

        Raises:
            ValueError: no copy is allowed, and another type needs one.
        """
        if dtype is None or np.dtype(dtype) == self.dtype:
            return self.counts.copy() if copy else self.counts
        if copy is False:
            msg = f"the load is {self.dtype}; expected that where no copy is allowed, and dtype is {np.dtype(dtype)}"
            raise ValueError(msg)
        return self.counts.astype(dtype)

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.num_steps

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - as arrays have it
        """Return what the array [steps, L, E] has there, read-only."""
        found = self.counts[key]
        return freeze(found) if isinstance(found, np.ndarray) else found

    def __iter__(self) -> Iterator[Float64Array]:
        """Go over the steps, float64 [L, E] each."""
        return iter(self.counts)

    def __hash__(self) -> int:
        """Hash the shape and the sum over steps: the whole trace may be large."""
        return hash((self.shape, (self.total + 0.0).tobytes()))  # −0 equals 0, and has other bytes

    def __eq__(self, other: object) -> bool:
        """Compare shape and every number with another load's; beside an array it is an array."""
        return super().__eq__(other)

    def __repr__(self) -> str:
        """Name the shape; the numbers would flood a log."""
        return (
            f"ExpertLoad(num_steps={self.num_steps}, num_layers={self.num_layers}, "
            f"num_experts={self.num_experts})"
        )


def take(counts: Float64Array) -> ExpertLoad:
    """Return a load that holds this very array, where `ExpertLoad` copies: readers of files make large ones.

    Args:
        counts: float64 [steps, L, E], which nobody else writes to; it becomes read-only.

    Raises:
        LoadError: a value is NaN, infinite, negative or absurd.
    """
    refuse_bad(counts, _AXES)
    load = ExpertLoad.__new__(ExpertLoad)
    object.__setattr__(load, "counts", freeze(np.ascontiguousarray(counts)))
    return load


def as_load(load: ArrayLike | ExpertLoad) -> ExpertLoad:
    """Return a load as it is, or what an array says.

    Raises:
        LoadError: see `ExpertLoad`.
    """
    return load if isinstance(load, ExpertLoad) else ExpertLoad(load)


def _refuse_bad_values(array: NDArray[Any]) -> None:
    # Half precision cannot hold the limit; other types are compared as they are, without a copy.
    numbers = array.astype(np.float64) if array.dtype == np.float16 else array
    refuse_bad(numbers, _AXES[-array.ndim :])


def refuse_bad(
    array: NDArray[Any], axes: Sequence[str], ids: Sequence[NDArray[np.int64]] | None = None
) -> None:
    """Refuse counts that are none, and name the first.

    Args:
        array: numbers of any shape.
        axes: what its axes are called in the message; of `ids` what those are.
        ids: of counts that are told one by one, int64 [n] each: what names a count instead of its place.

    Raises:
        LoadError: one is negative, NaN, infinite or absurd.
    """
    good = array >= 0
    good &= array <= MAX_LOAD
    bad = first_true(~good)
    if bad is not None:
        place, count = bad
        named = place if ids is None else [int(each[place]) for each in ids]
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, named, strict=True))
        more = f" (and {count - 1} more)" if count > 1 else ""
        msg = f"load at {where} is {float(array[place]):g}; expected a number from 0 to {MAX_LOAD:g}{more}"
        raise LoadError(msg)
