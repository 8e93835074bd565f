# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How good a placement is for a load, and what it costs to get there.

An expert's load is split evenly over its replicas. Where a placement is taken, a result that has one is taken too, and,
but for `moves`, one whose slots differ by layer. Arrays are read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._frozen import Frozen, freeze
from expert_maps._words import counted
from expert_maps.errors import ExpertMapsError, LoadError
from expert_maps.load import ExpertLoad, as_load
from expert_maps.placement import as_evaluated, as_placement
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from expert_maps.placement import Evaluated, Placement, PlacementLike

    Float64Array = NDArray[np.float64]


def rank_load(placement: Evaluated, load: ArrayLike | ExpertLoad) -> Float64Array:
    """Return the tokens that each rank computes.

    Args:
        placement: L layers, E logical experts, R ranks; or a result that has one.
        load: [L, E] or [steps, L, E]; steps are summed.

    Returns:
        float64 [L, R].

    Raises:
        LoadError: the load is invalid, or not of the placement's layers and experts.
    """
    parts = parts_of(placement, as_load(load))
    return freeze(np.concatenate([_rank_load(part, of_part.total) for part, of_part in parts]))


def parts_of(placement: Evaluated, load: ExpertLoad) -> list[tuple[Placement, ExpertLoad]]:
    """Return a placement with its load; one whose slots differ by layer in its layers, each with its part of the load.

    Raises:
        LoadError: the load is not of the placement's layers and experts.
    """
    parts = as_evaluated(placement)[1]
    check_counts(sum(part.num_layers for part in parts), parts[0].num_logical_experts, load)
    if len(parts) == 1:
        return [(parts[0], load)]
    return [(part, ExpertLoad(load[:, row : row + 1])) for row, part in enumerate(parts)]


def _rank_load(placement: Placement, tokens: Float64Array) -> Float64Array:
    """Return float64 [L, R] from float64 [L, E]."""
    share = tokens / placement.replica_count
    return sum_ranks(placement, np.take_along_axis(share, placement.physical_to_logical, axis=1))


def check_shape(placement: Placement, load: ExpertLoad) -> None:
    """Refuse a load of other layers or experts than the placement's.

    Raises:
        LoadError: as said.
    """
    check_counts(placement.num_layers, placement.num_logical_experts, load)


def check_counts(num_layers: int, num_experts: int, load: ExpertLoad) -> None:
    """Refuse a load of other layers or experts than L and E.

    Raises:
        LoadError: as said.
    """
    if (load.num_layers, load.num_experts) != (num_layers, num_experts):
        msg = (
            f"load has {counted(load.num_layers, 'layer')} and {counted(load.num_experts, 'expert')}; expected "
            f"{num_layers} and {num_experts}, as the placement has"
        )
        raise LoadError(msg)


def sum_ranks(placement: Placement, per_slot: Float64Array) -> Float64Array:
    """Sum what the slots of each rank carry: float64 [L, R] from float64 [L, P]."""
    if placement.is_even:
        return per_slot.reshape(len(per_slot), placement.ep_size, -1).sum(axis=2)
    # A rank without slots has an empty run, which reduceat cannot sum; running totals can.
    running = np.concatenate([np.zeros((len(per_slot), 1)), np.cumsum(per_slot, axis=1)], axis=1)
    return np.diff(running[:, placement.rank_offsets], axis=1)


def balancedness(placement: Evaluated, load: ArrayLike | ExpertLoad) -> Float64Array:
    """Return mean / max rank load per layer: float64 [L], at most 1; 1 for a layer without load."""
    return balancedness_of(rank_load(placement, load))


def balancedness_of(loads: Float64Array) -> Float64Array:
    """Return mean / max per layer, float64 [L], from what `rank_load` returned."""
    peak = loads.max(axis=1)
    return freeze(np.divide(loads.mean(axis=1), peak, out=np.ones_like(peak), where=peak > 0))


def gap_of(peak: Float64Array, bound: Float64Array) -> Float64Array:
    """Return peak / bound − 1, elementwise; 0 where rounding puts a peak below its bound, and without load."""
    ratio = np.divide(peak, bound, out=np.ones_like(peak), where=bound > 0)
    return np.maximum(ratio - 1.0, 0.0)


def overall_balancedness(placement: Evaluated, load: ArrayLike | ExpertLoad) -> float:
    """Return the ratio of the sums over layers of mean and max rank load, as vLLM logs it."""
    return overall_of(rank_load(placement, load))


def overall_of(loads: Float64Array) -> float:
    """Return the ratio of the sums of mean and max rank load, from what `rank_load` returned; 1 without load."""
    peak = float(loads.max(axis=1).sum())
    return float(loads.mean(axis=1).sum()) / peak if peak > 0 else 1.0


def over_steps(placement: Evaluated, load: ArrayLike | ExpertLoad) -> float:
    """Return the ratio of the sums over steps and layers of mean and hottest rank: at most 1; 1 without load.

    In each step the ranks wait for the hottest one of that step. Of a load of one step it is `overall_balancedness`.

    Raises:
        LoadError: as `rank_load`.
    """
    trace = as_load(load)
    return over_steps_of(step_peaks(placement, trace), trace, as_evaluated(placement)[1][0].ep_size)


def over_steps_of(peaks: Float64Array, load: ExpertLoad, ep_size: int) -> float:
    """Return what `over_steps` does, from what `step_peaks` returned; 1 without load."""
    peak = float(peaks.sum())
    return float(load.total.sum()) / ep_size / peak if peak > 0 else 1.0


def step_peaks(placement: Evaluated, load: ArrayLike | ExpertLoad) -> Float64Array:
    """Return the tokens of the hottest rank in each step: float64 [steps, L].

    Their sum over steps is what serving waits for; it is at least the peak of the summed load.

    Args:
        placement: L layers, E logical experts.
        load: [L, E], which is one step, or [steps, L, E].

    Raises:
        LoadError: as `rank_load`.
    """
    parts = parts_of(placement, as_load(load))
    peaks = [np.stack([_rank_load(part, step).max(axis=1) for step in of_part]) for part, of_part in parts]
    return freeze(np.concatenate(peaks, axis=1))


def peak_to_mean(placement: Evaluated, load: ArrayLike | ExpertLoad) -> Float64Array:
    """Return max / mean rank load per layer: float64 [L], at least 1; 1 for a layer without load."""
    return freeze(1.0 / balancedness(placement, load))


@dataclass(frozen=True, eq=False, repr=False)
class Moves(Frozen):
    """What changes from one placement to another. Read-only, and equal where its arrays are.

    Attributes:
        changed: bool [L, P], slots that hold another expert than before.
        fetched: bool [L, P], changed slots whose expert was not on that rank before, so that its weights
            cross the network; the other changed slots are filled from the same rank.
    """

    changed: NDArray[np.bool_]
    fetched: NDArray[np.bool_]

    @property
    def num_changed(self) -> int:
        """Slots that hold another expert, over all layers."""
        return int(self.changed.sum())

    @property
    def num_fetched(self) -> int:
        """Slots that are filled over the network, over all layers."""
        return int(self.fetched.sum())

    def summary(self) -> str:
        """Return one line: how many slots change, and how many of them are fetched."""
        return (
            f"{self.num_changed} of {counted(self.changed.size, 'slot')} change ({self.changed.mean():.1%}); "
            f"{self.num_fetched} are fetched from another rank"
        )

    def __repr__(self) -> str:
        """Name the counts; the slots themselves would flood a log."""
        return f"Moves(changed={self.num_changed}, fetched={self.num_fetched}, slots={self.changed.size})"

    def bytes(self, expert_bytes: int) -> int:
        """Return the bytes that cross the network for experts of ``expert_bytes`` each."""
        return self.num_fetched * as_count("expert_bytes", expert_bytes, 0, maximum=2**63 - 1)


def arrivals(held: NDArray[np.int32], after: Placement) -> NDArray[np.bool_]:
    """Say which slots hold an expert that their rank did not hold: bool [L, P].

    Args:
        held: int32 [L, R, X], the experts that each rank held, padded with −1.
        after: R ranks.
    """
    on_rank = np.zeros((*held.shape[:2], after.num_logical_experts + 1), dtype=bool)
    np.put_along_axis(on_rank, held, values=True, axis=2)  # −1 marks the extra last column
    layers = np.arange(after.num_layers)[:, None]
    return ~on_rank[layers, after.slot_rank, after.physical_to_logical]


def moves(before: PlacementLike, after: PlacementLike) -> Moves:
    """Compare two placements slot by slot.

    Raises:
        ExpertMapsError: they differ in layers, experts, ranks or slots per rank.
    """
    before, after = as_placement(before, "before"), as_placement(after, "after")
    check_alike(before, after)
    changed = before.physical_to_logical != after.physical_to_logical
    held = before.global_expert_map()  # [L, R, E]
    layers = np.arange(before.num_layers)[:, None]
    on_rank = held[layers, before.slot_rank, after.physical_to_logical] >= 0
    return Moves(changed, changed & ~on_rank)


def check_alike(before: Placement, after: Placement) -> None:
    """Refuse placements that cannot be compared slot by slot.

    Raises:
        ExpertMapsError: they differ in layers, experts, ranks or slots per rank.
    """
    for name in ("num_layers", "num_logical_experts", "ep_size", "num_physical_experts"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            msg = f"{name} differs: {old} before, {new} after; expected placements of the same counts"
            raise ExpertMapsError(msg)
    if not np.array_equal(before.slots_per_rank, after.slots_per_rank):
        msg = "slots_per_rank differs; expected placements with the same slots on every rank"
        raise ExpertMapsError(msg)
