# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How good a placement is for a load, and what it costs to get there.

An expert's load is split evenly over its replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._validation import as_count
from expert_maps.errors import ExpertMapsError, LoadError
from expert_maps.load import ExpertLoad

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from expert_maps.placement import Placement

    Float64Array = NDArray[np.float64]


def rank_load(placement: Placement, load: ArrayLike | ExpertLoad) -> Float64Array:
    """Return the tokens that each rank computes.

    Args:
        placement: L layers, E logical experts, R ranks.
        load: [L, E] or [steps, L, E]; steps are summed.

    Returns:
        float64 [L, R].

    Raises:
        LoadError: the load is invalid, or not of the placement's layers and experts.
    """
    total = (load if isinstance(load, ExpertLoad) else ExpertLoad(load)).total
    if total.shape != placement.replica_count.shape:
        msg = (
            f"load has {total.shape[0]} layers and {total.shape[1]} experts; expected "
            f"{placement.num_layers} and {placement.num_logical_experts}, as the placement has"
        )
        raise LoadError(msg)
    share = total / placement.replica_count
    per_slot = np.take_along_axis(share, placement.physical_to_logical, axis=1)  # [L, P]
    # A rank without slots has an empty run, which reduceat cannot sum; running totals can.
    running = np.concatenate([np.zeros((len(per_slot), 1)), np.cumsum(per_slot, axis=1)], axis=1)
    if placement.is_even:
        return per_slot.reshape(len(per_slot), placement.ep_size, -1).sum(axis=2)
    return np.diff(running[:, placement.rank_offsets], axis=1)


def balancedness(placement: Placement, load: ArrayLike | ExpertLoad) -> Float64Array:
    """Return mean / max rank load per layer: float64 [L], at most 1; 1 for a layer without load."""
    loads = rank_load(placement, load)
    peak = loads.max(axis=1)
    return np.divide(loads.mean(axis=1), peak, out=np.ones_like(peak), where=peak > 0)


def overall_balancedness(placement: Placement, load: ArrayLike | ExpertLoad) -> float:
    """Return the ratio of the sums over layers of mean and max rank load, as vLLM logs it."""
    loads = rank_load(placement, load)
    peak = float(loads.max(axis=1).sum())
    return float(loads.mean(axis=1).sum()) / peak if peak > 0 else 1.0


def peak_to_mean(placement: Placement, load: ArrayLike | ExpertLoad) -> Float64Array:
    """Return max / mean rank load per layer: float64 [L], at least 1; 1 for a layer without load."""
    return 1.0 / balancedness(placement, load)


@dataclass(frozen=True)
class Moves:
    """What changes from one placement to another of the same counts.

    Attributes:
        changed: bool [L, P], slots that hold another expert than before.
        fetched: bool [L, P], changed slots whose expert was not on that rank before, so that its weights
            cross the network; the other changed slots are filled from the same rank.
    """

    changed: NDArray[np.bool_]
    fetched: NDArray[np.bool_]

    def bytes(self, expert_bytes: int) -> int:
        """Return the bytes that cross the network for experts of ``expert_bytes`` each."""
        return int(self.fetched.sum()) * as_count("expert_bytes", expert_bytes, 0, maximum=2**63 - 1)


def moves(before: Placement, after: Placement) -> Moves:
    """Compare two placements slot by slot.

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
    changed = before.physical_to_logical != after.physical_to_logical
    held = before.global_expert_map()  # [L, R, E]
    layers = np.arange(before.num_layers)[:, None]
    on_rank = held[layers, before.slot_rank, after.physical_to_logical] >= 0
    return Moves(changed, changed & ~on_rank)
