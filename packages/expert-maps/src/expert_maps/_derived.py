# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What follows from the slots of a placement: its counts, where each slot is, and every map. `Placement` adds what is stored.

Shapes as there: L MoE layers, E logical experts, P physical experts (slots), R expert-parallel ranks, X most replicas of
one expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits, maps, routing
from expert_maps._frozen import Frozen, freeze, lazy
from expert_maps.errors import ExpertMapsError
from expert_maps.validation import as_count, as_index, check_product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int32Array = NDArray[np.int32]


class Derived(Frozen):
    """What follows from these four; see `Placement`, which is the only one."""

    physical_to_logical: Int32Array
    ep_size: int
    num_logical_experts: int
    slots_per_rank: Int32Array

    # Counts.

    @property
    def num_layers(self) -> int:
        """L, the number of MoE layers."""
        return int(self.physical_to_logical.shape[0])

    @property
    def num_physical_experts(self) -> int:
        """P, the number of slots of one layer over all ranks."""
        return int(self.physical_to_logical.shape[1])

    @property
    def num_redundant_experts(self) -> int:
        """P − E, per layer, over all ranks."""
        return self.num_physical_experts - self.num_logical_experts

    @property
    def is_even(self) -> bool:
        """Whether every rank owns P // R slots."""
        return bool((self.slots_per_rank == self.slots_per_rank[0]).all())

    # Slots.

    @lazy
    def rank_offsets(self) -> Int32Array:
        """int32 [R + 1]: rank r owns the physical ids rank_offsets[r] … rank_offsets[r + 1] − 1."""
        return np.concatenate([[0], np.cumsum(self.slots_per_rank)]).astype(np.int32)

    @lazy
    def slot_rank(self) -> Int32Array:
        """int32 [P]: the rank that owns each physical expert."""
        return np.repeat(np.arange(self.ep_size, dtype=np.int32), self.slots_per_rank)

    @lazy
    def slot_index(self) -> Int32Array:
        """int32 [P]: each physical expert's local slot on its rank."""
        index = np.arange(self.num_physical_experts, dtype=np.int32)
        return index - self.rank_offsets[self.slot_rank]

    def local_experts(self, layer: int, ep_rank: int) -> Int32Array:
        """Return the logical experts on a rank in slot order, int32 [slots of the rank]."""
        row = self.physical_to_logical[as_index("layer", layer, self.num_layers)]
        rank = as_index("ep_rank", ep_rank, self.ep_size)
        return row[self.rank_offsets[rank] : self.rank_offsets[rank + 1]]

    # Derived maps.

    @lazy
    def replica_count(self) -> Int32Array:
        """int32 [L, E]: how many copies each logical expert has."""
        return maps.count_replicas(self.physical_to_logical, self.num_logical_experts)

    @lazy
    def logical_to_physical(self) -> Int32Array:
        """int32 [L, E, X]: each logical expert's physical ids in ascending order, padded with −1.

        Raises:
            ExpertMapsError: it would be larger than `expert_maps.limits` allow: an expert has absurdly many copies.
        """
        copies = int(self.replica_count.max())
        axes = {"num_layers": self.num_layers, "num_logical_experts": self.num_logical_experts}
        check_product("logical_to_physical", {**axes, "most replicas": copies})
        return maps.invert(self.physical_to_logical, self.replica_count)

    def global_expert_map(self, layer: int | None = None) -> Int32Array:
        """Return the expert map of every rank.

        Args:
            layer: MoE layer index; None for all layers at once.

        Returns:
            int32 [R, E] (all layers: [L, R, E]): logical id → local slot on that rank, −1 where absent.
            An expert that stands twice on a rank maps to its first slot there.

        Raises:
            ExpertMapsError: the layer does not exist, or the table would be larger than `expert_maps.limits` allow.
        """
        rows = self._table_rows("global_expert_map", layer)
        table = maps.all_expert_maps(
            self.physical_to_logical[rows],
            self.num_logical_experts,
            self.slot_rank,
            self.slot_index,
            self.ep_size,
        )
        return freeze(table if layer is None else table[0])

    def expert_map(self, layer: int, ep_rank: int) -> Int32Array:
        """Return logical id → local slot on ``ep_rank``, −1 where absent: int32 [E].

        Raises:
            ExpertMapsError: ``layer`` or ``ep_rank`` does not exist.
        """
        local = self.local_experts(layer, ep_rank)[None]
        slots = np.arange(local.shape[1], dtype=np.int32)
        one_rank = np.zeros_like(slots)
        return freeze(maps.all_expert_maps(local, self.num_logical_experts, one_rank, slots, 1)[0, 0])

    def global_log2phy(
        self, layer: int | None = None, *, tp_size: int = 1, prefer_own_rank: bool = False
    ) -> Int32Array:
        """Return `log2phy` of every rank.

        Args:
            layer: MoE layer index; None for all layers at once.
            tp_size: tensor-parallel size, see `log2phy`; a rank's place in its group is ep_rank % tp_size.
            prefer_own_rank: see `log2phy`.

        Returns:
            int32 [R, E] (all layers: [L, R, E]).

        Raises:
            ExpertMapsError: the layer does not exist, both rules are asked for, or the table would be larger than
                `expert_maps.limits` allow.
        """
        tp = as_count("tp_size", tp_size, minimum=1)
        ranks = np.arange(self.ep_size, dtype=np.int32)
        rows = self._table_rows("global_log2phy", layer)
        if prefer_own_rank:
            _refuse_tensor_parallel(tp)
            held = self.global_expert_map(layer).reshape(-1, self.ep_size, self.num_logical_experts)
            table = maps.all_own_rank_log2phy(
                self.logical_to_physical[rows], self.replica_count[rows], held, self.rank_offsets
            )
            return freeze(table if layer is None else table[0])
        turns = maps.replica_turns(ranks, self.num_logical_experts, tp)
        table = maps.all_log2phy(self.logical_to_physical[rows], self.replica_count[rows], *turns)
        return freeze(table if layer is None else table[0])

    def log2phy(
        self,
        layer: int,
        ep_rank: int,
        *,
        tp_size: int = 1,
        tp_rank: int | None = None,
        prefer_own_rank: bool = False,
    ) -> Int32Array:
        """Return logical id → the one physical id that this rank sends to: int32 [E].

        An expert's n replicas are ordered by physical id. By default a rank takes replica
        ``ep_rank % n``; with tensor parallelism ``(tp_rank + ep_rank // tp_size + expert) % n``. These are
        vllm-ascend's rules, by which a rank may send away what it holds itself. With ``prefer_own_rank`` it does not, as
        SGLang's static dispatch; the ranks without a copy are dealt out to the copies evenly.

        Args:
            layer: MoE layer index.
            ep_rank: the sending rank.
            tp_size: tensor-parallel size; 1 for the default choice.
            tp_rank: tensor-parallel rank, in [0, tp_size); if None, ep_rank % tp_size.
            prefer_own_rank: whether a rank takes its own copy where it has one; only without tensor parallelism, whose
                ranks see the same tokens and must agree.

        Raises:
            ExpertMapsError: an index does not exist, or both rules are asked for.
        """
        tp = as_count("tp_size", tp_size, minimum=1)
        if prefer_own_rank:
            _refuse_tensor_parallel(tp)
            index = as_index("ep_rank", ep_rank, self.ep_size)
            row = as_index("layer", layer, self.num_layers)
            return freeze(self.global_log2phy(row, prefer_own_rank=True)[index])
        in_tp = None if tp_rank is None else np.array([as_index("tp_rank", tp_rank, tp)], dtype=np.int32)
        rank = np.array([as_index("ep_rank", ep_rank, self.ep_size)], dtype=np.int32)
        row = as_index("layer", layer, self.num_layers)
        rows = slice(row, row + 1)
        turns = maps.replica_turns(rank, self.num_logical_experts, tp, in_tp)
        return freeze(
            maps.all_log2phy(self.logical_to_physical[rows], self.replica_count[rows], *turns)[0, 0]
        )

    def routing_table(self, layer: int, ep_rank: int, *, rows: int | None = None) -> Int32Array:
        """Return the table by which replicas take turns: int32 [rows, E].

        Row = token index mod rows, column = logical id, value = physical id. Row i sends to replica
        ``(i + ep_rank) % n``, so over one period an expert's replicas differ by at most one token.

        Args:
            layer: MoE layer index.
            ep_rank: the sending rank, by which the turn is offset.
            rows: the period in tokens; if None, the least common multiple of the layer's replica counts,
                at most `expert_maps.routing.MAX_DEFAULT_ROWS`.

        Raises:
            ExpertMapsError: an index does not exist, or ``rows`` is below 1.
        """
        index = as_index("layer", layer, self.num_layers)
        rank = as_index("ep_rank", ep_rank, self.ep_size)
        counts = self.replica_count[index]
        period = routing.default_rows(counts) if rows is None else self._period(rows)
        return freeze(routing.rank_offset_table(self.logical_to_physical[index], counts, rank, period))

    def weighted_routing_table(
        self, layer: int, ep_rank: int, replica_weights: NDArray[np.float64], *, rows: int = 128
    ) -> Int32Array:
        """Return the table by which each replica takes its weight's share of the tokens: int32 [rows, E].

        Args:
            layer: MoE layer index.
            ep_rank: the sending rank, by which the turn is offset.
            replica_weights: float64 [E, X], this layer's, ordered as `logical_to_physical`; rows sum to 1.
            rows: the period in tokens; a share is off by less than one token a period.

        Raises:
            ExpertMapsError: an index does not exist, ``rows`` is below 1, or the weights are no shares.
        """
        index = as_index("layer", layer, self.num_layers)
        rank = as_index("ep_rank", ep_rank, self.ep_size)
        period = self._period(rows)
        return freeze(routing.weighted_table(self.logical_to_physical[index], replica_weights, rank, period))

    def _table_rows(self, name: str, layer: int | None) -> slice:
        """Return the rows of a layer, or of all, for a table of every rank; or refuse its size."""
        index = None if layer is None else as_index("layer", layer, self.num_layers)
        rows = slice(None) if index is None else slice(index, index + 1)
        axes = {"ep_size": self.ep_size, "num_logical_experts": self.num_logical_experts}
        num_layers = self.num_layers if index is None else 1
        check_product(name, {"num_layers": num_layers, **axes})
        return rows

    def _period(self, rows: int) -> int:
        """Return the rows of a routing table, or refuse their number."""
        period = as_count("rows", rows, minimum=1, maximum=limits.MAX_ROWS)
        axes = {"rows": period, "num_logical_experts": self.num_logical_experts}
        check_product("a routing table", axes, limits.MAX_TABLE // 4)
        return period


def _refuse_tensor_parallel(tp_size: int) -> None:
    if tp_size > 1:
        msg = f"tp_size is {tp_size} with prefer_own_rank; expected 1: ranks that see the same tokens must agree"
        raise ExpertMapsError(msg)
