# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`split_replicas`: the best split of each expert's tokens over its copies."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps._library import load_library
from expert_maps.load import ExpertLoad
from expert_maps.validation import as_index

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from expert_maps.placement import Placement

    Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReplicaWeights:
    """What `split_replicas` returns.

    Attributes:
        placement: the placement whose copies take the tokens.
        weights: float64 [L, E, X], each copy's share of its expert's tokens, ordered as
            `Placement.logical_to_physical`: rows sum to 1, and are 0 where there is no copy.
        rank_load: float64 [L, R], tokens of each rank by these weights.
        lower_bound: float64 [L], tokens: no split has a hottest rank below it.
    """

    placement: Placement
    weights: Float64Array
    rank_load: Float64Array
    lower_bound: Float64Array

    @property
    def max_rank_load(self) -> Float64Array:
        """float64 [L]: tokens of the hottest rank."""
        peak: Float64Array = self.rank_load.max(axis=1)
        return peak

    @property
    def balancedness(self) -> Float64Array:
        """float64 [L]: mean / max rank load; 1 for a layer without load."""
        return metrics.balancedness_of(self.rank_load)

    @property
    def gap(self) -> Float64Array:
        """float64 [L]: max rank load / lower bound − 1; only rounding is left."""
        return metrics.gap_of(self.max_rank_load, self.lower_bound)

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


def split_replicas(placement: Placement, load: ArrayLike | ExpertLoad) -> ReplicaWeights:
    """Find the split of each expert's tokens over its copies that has the coolest hottest rank.

    Maximum flows prove it: some experts have all their copies on so few ranks that no split does better. Among the
    best splits it is the most level one: the second hottest rank is as cool as it can be then, and so on.

    Args:
        placement: L layers, E experts.
        load: tokens of each logical expert, [L, E] or [steps, L, E]; steps are summed. An expert without tokens is
            split evenly.

    Returns:
        The weights; for routing, and for a ``replica_weights_path``.

    Raises:
        LoadError: the load is invalid, or not of the placement's layers and experts.
        MemoryError: there is too little of it.
    """
    trace = load if isinstance(load, ExpertLoad) else ExpertLoad(load)
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
    status = load_library().expert_maps_split(
        *(ctypes.c_int64(count) for count in counts),
        *(ctypes.c_void_p(array.ctypes.data) for array in arrays),
    )
    if status:
        raise MemoryError
    slots = placement.logical_to_physical
    layers = np.arange(placement.num_layers)[:, None]
    weights = np.where(slots >= 0, share[layers[:, :, None], slots], 0.0)
    tokens = share * np.take_along_axis(total, placement.physical_to_logical, axis=1)
    return ReplicaWeights(placement, weights, metrics.sum_ranks(placement, tokens), bound)
