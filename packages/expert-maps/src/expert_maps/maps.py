# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Derived maps as pure functions of a placement's arrays; `Placement` offers them as methods.

Shapes: L MoE layers, E logical experts, P physical experts (slots), R expert-parallel ranks, X most
replicas of one expert. All maps are int32 and of logical length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int32Array = NDArray[np.int32]


def count_replicas(physical_to_logical: Int32Array, num_logical_experts: int) -> Int32Array:
    """Count the copies of each logical expert: int32 [L, E] from int32 [L, P]."""
    num_layers = physical_to_logical.shape[0]
    keys = physical_to_logical + np.arange(num_layers)[:, None] * num_logical_experts
    counts = np.bincount(keys.ravel(), minlength=num_layers * num_logical_experts)
    return counts.reshape(num_layers, num_logical_experts).astype(np.int32)


def invert(physical_to_logical: Int32Array, replica_count: Int32Array) -> Int32Array:
    """List each logical expert's slots in ascending order, padded with −1.

    Args:
        physical_to_logical: int32 [L, P].
        replica_count: int32 [L, E], as `count_replicas` returns it.

    Returns:
        logical_to_physical, int32 [L, E, X] with X the largest replica count.
    """
    num_layers, num_logical = replica_count.shape
    num_physical = physical_to_logical.shape[1]
    # 1. A stable sort by expert keeps the slots of one expert in ascending order.
    #    In 16 bits, where the ids fit, NumPy sorts by radix: eight times as fast.
    keys = physical_to_logical.astype(np.int16) if num_logical <= 2**15 else physical_to_logical
    order = np.argsort(keys, axis=1, kind="stable")
    experts = np.take_along_axis(physical_to_logical, order, axis=1)
    # 2. A slot's replica index is its position after the first slot of the same expert.
    first = np.cumsum(replica_count, axis=1) - replica_count  # [L, E]
    replica_index = np.arange(num_physical) - np.take_along_axis(first, experts, axis=1)
    # 3. Scatter.
    slots = np.full((num_layers, num_logical, int(replica_count.max())), -1, dtype=np.int32)
    slots[np.arange(num_layers)[:, None], experts, replica_index] = order
    return slots


def all_expert_maps(
    physical_to_logical: Int32Array,
    num_logical_experts: int,
    slot_rank: Int32Array,
    slot_index: Int32Array,
    ep_size: int,
) -> Int32Array:
    """Map logical experts to local slots for every layer and rank; −1 where an expert is absent.

    An expert that stands twice on a rank (only where duplicates were allowed) maps to its first slot.

    Args:
        physical_to_logical: int32 [L, P].
        num_logical_experts: E.
        slot_rank: int32 [P], the rank that owns each slot.
        slot_index: int32 [P], each slot's index on its rank.
        ep_size: R.

    Returns:
        int32 [L, R, E].
    """
    num_layers = physical_to_logical.shape[0]
    expert_map = np.full((num_layers, ep_size, num_logical_experts), -1, dtype=np.int32)
    flat = expert_map.reshape(-1)
    keys = rank_expert_keys(physical_to_logical, num_logical_experts, slot_rank, ep_size)
    flat[keys] = slot_index
    # Where a key repeats, NumPy does not promise which value stays, so a later slot that stayed gives way
    # to an earlier one until none is left.
    while (flat[keys] > slot_index).any():
        layer, slot = np.nonzero(flat[keys] > slot_index)
        flat[keys[layer, slot]] = slot_index[slot]
    return expert_map


def rank_expert_keys(
    physical_to_logical: NDArray[np.integer],
    num_logical_experts: int,
    slot_rank: NDArray[np.integer],
    ep_size: int,
) -> NDArray[np.int64]:
    """Return each slot's place in a flattened [L, R, E] array: int64 [L, P]."""
    rows = np.arange(physical_to_logical.shape[0], dtype=np.int64)[:, None] * ep_size + slot_rank
    return rows * num_logical_experts + physical_to_logical


def replica_turns(
    ep_rank: Int32Array, num_logical_experts: int, tp_size: int = 1, tp_rank: Int32Array | None = None
) -> tuple[Int32Array, Int32Array]:
    """Return the two terms whose sum, modulo an expert's n replicas, is the replica that a rank takes.

    Without tensor parallelism that is ``ep_rank % n``. With it, ``(tp_rank + ep_rank // tp_size + expert)
    % n``, so that the ranks of one data-parallel group do not all pick the same replica (vllm-ascend 9239).

    Args:
        ep_rank: int32 [N], the sending ranks.
        num_logical_experts: E.
        tp_size: tensor-parallel size.
        tp_rank: int32 [N]; ``ep_rank % tp_size`` if None, as vLLM flattens ranks.

    Returns:
        of_rank: int32 [N].
        of_expert: int32 [E].
    """
    experts = np.arange(num_logical_experts, dtype=np.int32)
    if tp_size == 1:
        return ep_rank, np.zeros_like(experts)
    return (ep_rank % tp_size if tp_rank is None else tp_rank) + ep_rank // tp_size, experts


def all_log2phy(
    logical_to_physical: Int32Array,
    replica_count: Int32Array,
    of_rank: Int32Array,
    of_expert: Int32Array,
) -> Int32Array:
    """Map logical experts to the one physical expert that each rank sends to.

    Args:
        logical_to_physical: int32 [L, E, X].
        replica_count: int32 [L, E].
        of_rank: int32 [N], see `replica_turns`.
        of_expert: int32 [E].

    Returns:
        int32 [L, N, E].
    """
    # 1. Experts of one or two copies are nearly all, and of a rank only its parity matters to them: two
    #    rows a layer, copied to the ranks, are right for them.
    first, second = (
        logical_to_physical[:, :, 0],
        logical_to_physical[:, :, min(1, logical_to_physical.shape[2] - 1)],
    )
    rows = np.empty((len(replica_count), 2, len(of_expert)), dtype=np.int32)
    for parity in (0, 1):
        takes_second = (replica_count == 2) & ((of_expert + parity) % 2 == 1)  # noqa: PLR2004
        rows[:, parity] = np.where(takes_second, second, first)
    log2phy = np.take(rows, of_rank % 2, axis=1)  # [L, N, E]
    # 2. The few with more are looked up rank by rank.
    layer, expert = np.nonzero(replica_count > 2)  # noqa: PLR2004
    turn = of_rank + of_expert[expert][:, None]  # [looked up, N]
    choice = turn % replica_count[layer, expert][:, None]
    log2phy[layer, :, expert] = logical_to_physical[layer[:, None], expert[:, None], choice]
    return log2phy


def all_own_rank_log2phy(
    logical_to_physical: Int32Array,
    replica_count: Int32Array,
    global_expert_map: Int32Array,
    rank_offsets: Int32Array,
) -> Int32Array:
    """Map logical experts to the physical expert that each rank sends to, its own copy where it has one.

    The ranks without a copy are dealt out to the copies in turn, each expert's turn starting one further on. So no
    copy of an expert serves more than one rank more than another, as long as none stands twice on a rank.

    Args:
        logical_to_physical: int32 [L, E, X].
        replica_count: int32 [L, E].
        global_expert_map: int32 [L, R, E], local slots, −1 where absent.
        rank_offsets: int32 [R + 1], each rank's first physical id.

    Returns:
        int32 [L, R, E].
    """
    is_absent = global_expert_map < 0
    counted = is_absent.astype(np.int32)
    before = np.cumsum(counted, axis=1, dtype=np.int32) - counted  # ranks without a copy before this one
    turn = np.remainder(before + np.arange(replica_count.shape[1], dtype=np.int32), replica_count[:, None, :])
    slots = np.broadcast_to(logical_to_physical[:, None], (*turn.shape, logical_to_physical.shape[2]))
    in_turn = np.take_along_axis(slots, turn[..., None], axis=3)[..., 0]
    own = global_expert_map + rank_offsets[:-1, None]
    chosen: Int32Array = np.where(is_absent, in_turn, own).astype(np.int32)
    return chosen
