# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`split_replicas`: the best split of each expert's tokens over its copies."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import metrics
from expert_maps._frozen import Frozen, lazy
from expert_maps._library import load_library
from expert_maps._native_call import call
from expert_maps.errors import ExpertMapsError
from expert_maps.load import as_load
from expert_maps.placement import as_placement
from expert_maps.results import Balance, describe_balance, describe_counts
from expert_maps.validation import as_index

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement, PlacementLike

    Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class ReplicaWeights(Balance, Frozen):
    """What `split_replicas` returns. Read-only, and equal where placement and arrays are.

    Attributes:
        placement: the placement whose copies take the tokens.
        weights: float64 [L, E, X], each copy's share of its expert's tokens, ordered as
            `Placement.logical_to_physical`: rows sum to 1, and are 0 where there is no copy.
        rank_load: float64 [L, R], tokens of each rank by these weights.
        lower_bound: float64 [L], tokens: no split has a hottest rank below it.
        load: what was split for; None where that is not known.
    """

    placement: Placement
    weights: Float64Array
    rank_load: Float64Array
    lower_bound: Float64Array
    load: ExpertLoad | None = None

    @lazy
    def over_steps(self) -> float:
        """The ratio of the sums over steps and layers of mean and hottest rank, with these weights in every step.

        Raises:
            ExpertMapsError: the load is not known.
        """
        if self.load is None:
            msg = "the load of these weights is not known; expected it where they are judged over steps"
            raise ExpertMapsError(msg)
        share = share_of_slots(self.placement, self.weights)
        slots = self.placement.physical_to_logical
        peaks = [
            metrics.sum_ranks(self.placement, share * np.take_along_axis(step, slots, axis=1)).max(axis=1)
            for step in self.load
        ]
        return metrics.over_steps_of(np.array(peaks), self.load, self.placement.ep_size)

    @lazy
    def gap(self) -> Float64Array:
        """float64 [L]: max rank load / lower bound − 1; only rounding is left."""
        return metrics.gap_of(self.max_rank_load, self.lower_bound)

    def summary(self) -> str:
        """Return what there is to know in a few lines."""
        lines = [f"weights: {describe_counts(self.placement)}"]
        lines += describe_balance(self.balancedness, self.overall_balancedness)
        if self.load is not None:
            even = metrics.overall_balancedness(self.placement, self.load)
            lines.append(f"copies that take turns: balancedness {even:.4f}")
        return "\n".join(lines)

    def plot(self) -> Any:  # noqa: ANN401 - matplotlib may be absent
        """Draw balancedness and rank loads of copies that take turns, and of these weights.

        Returns:
            A ``matplotlib.figure.Figure``; its ``savefig`` writes it.

        Raises:
            ExpertMapsError: matplotlib is not installed, or the load is not known.
        """
        from expert_maps import plots

        return plots.plot_weights(self)

    def __repr__(self) -> str:
        """Name the counts and how good it is; the arrays would flood a log."""
        placement = self.placement
        return (
            f"ReplicaWeights(num_layers={placement.num_layers}, "
            f"num_logical_experts={placement.num_logical_experts}, "
            f"num_redundant_experts={placement.num_redundant_experts}, ep_size={placement.ep_size}, "
            f"overall_balancedness={self.overall_balancedness:.4f})"
        )

    def routing_table(self, layer: int, ep_rank: int, *, rows: int = 128) -> NDArray[np.int32]:
        """Return the table by which the copies take turns: int32 [rows, E], see `Placement.weighted_routing_table`.

        Args:
            layer: MoE layer index.
            ep_rank: the sending rank, by which the turn is offset.
            rows: the period in tokens; a share is off by less than one token a period.

        Raises:
            ExpertMapsError: an index does not exist, or ``rows`` is below 1.
        """
        index = as_index("layer", layer, self.placement.num_layers)
        return self.placement.weighted_routing_table(index, ep_rank, self.weights[index], rows=rows)


def share_of_slots(placement: Placement, weights: Float64Array) -> Float64Array:
    """Return each slot's share of its expert's tokens, float64 [L, P], from weights [L, E, X]."""
    slots = placement.logical_to_physical
    layers = np.broadcast_to(np.arange(len(slots))[:, None, None], slots.shape)
    share = np.zeros(placement.physical_to_logical.shape)
    share[layers[slots >= 0], slots[slots >= 0]] = weights[slots >= 0]
    return share


def split_replicas(placement: PlacementLike, load: ArrayLike | ExpertLoad) -> ReplicaWeights:
    """Find the split of each expert's tokens over its copies that has the coolest hottest rank.

    Maximum flows prove it: some experts have all their copies on so few ranks that no split does better. Among the
    best splits it is the most level one: the second hottest rank is as cool as it can be then, and so on.

    Args:
        placement: L layers, E experts; or a result that has one.
        load: tokens of each logical expert, [L, E] or [steps, L, E]; steps are summed. An expert without tokens is
            split evenly.

    Returns:
        The weights; for routing, and for a ``replica_weights_path``: see `expert_maps.write_weights`.

    Raises:
        LoadError: the load is invalid, or not of the placement's layers and experts.
        MemoryError: there is too little of it.
    """
    placement, trace = as_placement(placement), as_load(load)
    metrics.check_shape(placement, trace)
    share = np.zeros(placement.physical_to_logical.shape)
    bound = np.empty(placement.num_layers)
    total = np.ascontiguousarray(trace.total)
    arrays = (
        np.ascontiguousarray(placement.rank_offsets),
        np.ascontiguousarray(placement.slot_rank),
        np.ascontiguousarray(placement.physical_to_logical),
        total,
        share,
        bound,
    )
    counts = (
        placement.num_layers,
        placement.num_logical_experts,
        placement.ep_size,
        placement.num_physical_experts,
    )
    status = call(
        load_library().expert_maps_split,
        *(ctypes.c_int64(count) for count in counts),
        *(ctypes.c_void_p(array.ctypes.data) for array in arrays),
        keep=arrays,
        work=placement.num_layers * placement.num_physical_experts**2,
    )
    if status:
        raise MemoryError
    slots = placement.logical_to_physical
    layers = np.arange(placement.num_layers)[:, None]
    weights = np.where(slots >= 0, share[layers[:, :, None], slots], 0.0)
    tokens = share * np.take_along_axis(total, placement.physical_to_logical, axis=1)
    return ReplicaWeights(placement, weights, metrics.sum_ranks(placement, tokens), bound, trace)
