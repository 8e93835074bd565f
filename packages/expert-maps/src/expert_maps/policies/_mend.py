# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Mend placements in which an expert stands twice on a rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64Array = NDArray[np.int64]


def duplicate_layers(physical_to_logical: Int64Array, ep_size: int) -> Int64Array:
    """Return the layers of [L, P] in which some rank holds an expert twice."""
    per_rank = np.sort(physical_to_logical.reshape(len(physical_to_logical), ep_size, -1), axis=2)
    return np.nonzero((per_rank[:, :, 1:] == per_rank[:, :, :-1]).any(axis=(1, 2)))[0]


def swap_duplicates_away(
    load: NDArray[np.float64], physical_to_logical: Int64Array, ep_size: int, num_nodes: int
) -> Int64Array:
    """Swap every second copy of an expert on a rank with a slot of another rank of the same node.

    Of the swaps that reduce the number of second copies, the one with the lightest hotter rank is taken.
    Such a swap exists as long as no expert has more copies than its node has ranks: some rank of the node
    lacks the expert, and that rank holds either an expert which the first rank lacks, or one twice.

    Args:
        load: float64 [L, E].
        physical_to_logical: int64 [L, P], even slots, no expert with more copies than ranks in its node.
        ep_size: R.
        num_nodes: servers.

    Returns:
        int64 [L, P] with the same copies on each node and none twice on a rank.
    """
    mended = physical_to_logical.copy()
    num_layers, num_experts = load.shape
    node_slots = mended.shape[1] // num_nodes
    for layer in range(num_layers):
        count = np.bincount(mended[layer], minlength=num_experts)
        share = load[layer] / count
        for start in range(0, mended.shape[1], node_slots):
            node = mended[layer, start : start + node_slots].reshape(ep_size // num_nodes, -1)
            _mend_node(node, share, num_experts)
    return mended


def _mend_node(slots: Int64Array, share: NDArray[np.float64], num_experts: int) -> None:
    """Mend one node in place: ``slots`` is [ranks of the node, slots a rank], ``share`` [E]."""
    num_ranks, per_rank = slots.shape
    held = np.zeros((num_ranks, num_experts), dtype=np.int64)  # copies of each expert on each rank
    np.add.at(held, (np.arange(num_ranks)[:, None], slots), 1)
    rank_load = share[slots].sum(axis=1)
    partner_rank = np.repeat(np.arange(num_ranks), per_rank)
    while True:
        second = np.argwhere(np.take_along_axis(held, slots, axis=1) > 1)
        if not second.size:
            return
        rank, slot = (int(index) for index in second[0])
        expert, partner = slots[rank, slot], slots.ravel()
        # The partner's rank lacks this expert; its own expert is new here, or one too many there.
        useful = (held[partner_rank, expert] == 0) & (
            (held[rank, partner] == 0) | (held[partner_rank, partner] > 1)
        )
        assert useful.any(), "an expert has more copies than its node has ranks"
        gain = share[partner] - share[expert]
        hotter = np.maximum(rank_load[rank] + gain, rank_load[partner_rank] - gain)
        best = int(np.argmin(np.where(useful, hotter, np.inf)))
        other, incoming = int(partner_rank[best]), int(partner[best])
        slots[rank, slot] = incoming
        slots[other, best % per_rank] = expert
        rank_load[rank] += gain[best]
        rank_load[other] -= gain[best]
        for holder, gained, lost in ((rank, incoming, expert), (other, expert, incoming)):
            held[holder, gained] += 1
            held[holder, lost] -= 1
