# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of a placement, checked on flat coordinates so that ragged input is diagnosed too."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import Violation
from expert_maps.maps import rank_expert_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64Array = NDArray[np.int64]


def split_evenly(total: int, ep_size: int) -> Int64Array:
    """Return how many of ``total`` experts each rank gets when the first ranks take the remainder."""
    slots = np.full(ep_size, total // ep_size, dtype=np.int64)
    slots[: total % ep_size] += 1
    return slots


@dataclass(frozen=True)
class Slots:
    """Every slot of a placement, also of a ragged one.

    Attributes:
        layer: int64 [N], the layer of each slot.
        rank: int64 [N].
        slot: int64 [N], the local slot.
        expert: int64 [N], the logical expert in it.
        per_rank: int64 [L, R], how many slots each rank has.
    """

    layer: Int64Array
    rank: Int64Array
    slot: Int64Array
    expert: Int64Array
    per_rank: Int64Array

    @classmethod
    def from_flat(cls, expert: Int64Array, per_rank: Int64Array) -> Slots:
        """Build from the experts in (layer, rank, slot) order and the slots per layer and rank."""
        num_layers, ep_size = per_rank.shape
        lengths = per_rank.ravel()
        owner = np.repeat(np.arange(num_layers * ep_size), lengths)
        start = np.cumsum(lengths) - lengths
        slot = np.arange(len(expert)) - start[owner]
        return cls(owner // ep_size, owner % ep_size, slot, expert, per_rank)


def infer_num_logical_experts(experts: NDArray[np.integer], most: int) -> int:
    """Return one more than the largest id that could be an expert.

    Args:
        experts: the ids found, of any shape.
        most: slots of a layer: it cannot hold more experts, so larger ids are mistakes.
    """
    highest = int(experts.max())
    if highest >= most:
        known = experts[(experts >= 0) & (experts < most)]
        highest = int(known.max()) if known.size else 0
    return max(highest, 0) + 1


def is_valid(
    table: NDArray[np.int64],
    per_rank: Int64Array,
    num_logical_experts: int,
    *,
    allow_uneven: bool,
    allow_duplicates: bool,
) -> bool:
    """Whether `find_violations` would find none: the quick way, for the usual case.

    Args:
        table: int64 [L, P].
        per_rank: int64 [R], slots of each rank in every layer.
        num_logical_experts: E.
        allow_uneven: as in `find_violations`.
        allow_duplicates: as in `find_violations`.
    """
    num_layers, num_physical = table.shape
    ep_size = len(per_rank)
    if table.min() < 0 or table.max() >= num_logical_experts:
        return False
    if not allow_uneven and not _is_even(per_rank, num_physical, num_logical_experts):
        return False
    slot_rank = np.repeat(np.arange(ep_size), per_rank)
    held = np.zeros(num_layers * ep_size * num_logical_experts, dtype=bool)
    held[rank_expert_keys(table, num_logical_experts, slot_rank, ep_size)] = True
    if not allow_duplicates and np.count_nonzero(held) != table.size:
        return False
    present = np.zeros(num_layers * num_logical_experts, dtype=bool)
    present[np.arange(num_layers)[:, None] * num_logical_experts + table] = True
    return bool(present.all())


def _is_even(per_rank: Int64Array, num_physical: int, num_logical_experts: int) -> bool:
    """Equally many slots; or without redundancy vLLM's split, in which the first ranks have one more."""
    if (per_rank == per_rank.flat[0]).all():
        return True
    ep_size = per_rank.shape[-1]
    return num_physical == num_logical_experts and bool(
        (per_rank == split_evenly(num_physical, ep_size)).all()
    )


def find_violations(
    slots: Slots, num_logical_experts: int, *, allow_uneven: bool, allow_duplicates: bool
) -> list[Violation]:
    """Return every broken rule, ordered by kind, layer, rank and slot; empty for a good placement."""
    violations = [] if allow_uneven else _uneven(slots, num_logical_experts)
    violations += _out_of_range(slots, num_logical_experts)
    violations += _missing(slots, num_logical_experts)
    if not allow_duplicates:
        violations += _duplicates(slots, num_logical_experts)
    return violations


def _uneven(slots: Slots, num_logical_experts: int) -> list[Violation]:
    per_rank = slots.per_rank
    if _is_even(per_rank, int(per_rank[0].sum()), num_logical_experts):
        return []
    # What most ranks hold is what was meant; where that is a tie, what the first rank holds.
    sizes = Counter(per_rank.ravel().tolist())
    usual = sizes.most_common(1)[0][0]
    return [
        Violation(
            "uneven",
            f"layer {layer}, rank {rank}: {per_rank[layer, rank]} slots; expected {usual}, "
            "equally many on every rank",
            int(layer),
            int(rank),
        )
        for layer, rank in zip(*np.nonzero(per_rank != usual), strict=True)
    ]


def _out_of_range(slots: Slots, num_logical_experts: int) -> list[Violation]:
    bad = np.nonzero((slots.expert < 0) | (slots.expert >= num_logical_experts))[0]
    return [
        Violation(
            "out_of_range",
            f"layer {slots.layer[i]}, rank {slots.rank[i]}, slot {slots.slot[i]}: expert {slots.expert[i]} "
            f"is out of range; expected 0 … {num_logical_experts - 1}",
            int(slots.layer[i]),
            int(slots.rank[i]),
            int(slots.slot[i]),
            int(slots.expert[i]),
        )
        for i in bad
    ]


def _missing(slots: Slots, num_logical_experts: int) -> list[Violation]:
    num_layers = slots.per_rank.shape[0]
    known = (slots.expert >= 0) & (slots.expert < num_logical_experts)
    keys = slots.layer[known] * num_logical_experts + slots.expert[known]
    present = np.zeros(num_layers * num_logical_experts, dtype=bool)
    present[keys] = True
    absent = np.nonzero(~present)[0]
    return [
        Violation(
            "missing",
            f"layer {key // num_logical_experts}: expert {key % num_logical_experts} is missing; "
            "expected on at least one rank",
            layer=int(key // num_logical_experts),
            expert=int(key % num_logical_experts),
        )
        for key in absent
    ]


def _duplicates(slots: Slots, num_logical_experts: int) -> list[Violation]:
    known = np.nonzero((slots.expert >= 0) & (slots.expert < num_logical_experts))[0]
    ep_size = slots.per_rank.shape[1]
    keys = (slots.layer[known] * ep_size + slots.rank[known]) * num_logical_experts + slots.expert[known]
    order = np.argsort(keys, kind="stable")
    repeated = np.nonzero(keys[order[1:]] == keys[order[:-1]])[0]
    if not repeated.size:
        return []
    pairs = sorted((int(known[order[i + 1]]), int(known[order[i]])) for i in repeated)
    return [
        Violation(
            "duplicate",
            f"layer {slots.layer[again]}, rank {slots.rank[again]}, slot {slots.slot[again]}: expert "
            f"{slots.expert[again]} stands twice on this rank (also in slot {slots.slot[before]})",
            int(slots.layer[again]),
            int(slots.rank[again]),
            int(slots.slot[again]),
            int(slots.expert[again]),
        )
        for again, before in pairs
    ]
