# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of a placement, checked on flat coordinates so that ragged input is diagnosed too."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._broken_rules import Duplicate, Missing, OutOfRange, Slots, Uneven
from expert_maps.errors import Violations
from expert_maps.limits import MAX_TABLE
from expert_maps.maps import rank_expert_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.errors import ViolationGroup

    Int64Array = NDArray[np.int64]


def split_evenly(total: int, ep_size: int) -> Int64Array:
    """Return how many of ``total`` experts each rank gets when the first ranks take the remainder."""
    slots = np.full(ep_size, total // ep_size, dtype=np.int64)
    slots[: total % ep_size] += 1
    return slots


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
    if table.min() < 0 or table.max() >= num_logical_experts:
        return False
    if not allow_uneven and not _is_even(per_rank, num_physical, num_logical_experts):
        return False
    if not allow_duplicates and _has_duplicates(table, per_rank, num_logical_experts):
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


def _has_duplicates(table: NDArray[np.int64], per_rank: Int64Array, num_logical_experts: int) -> bool:
    """Whether an expert stands twice on a rank; every id is in range."""
    num_layers, ep_size = len(table), len(per_rank)
    slot_rank = np.repeat(np.arange(ep_size), per_rank)
    keys = rank_expert_keys(table, num_logical_experts, slot_rank, ep_size)
    size = num_layers * ep_size * num_logical_experts
    if size > MAX_TABLE:  # many ranks: sorting takes longer, and only as much memory as the slots
        ordered = np.sort(keys, axis=None)
        return bool((ordered[1:] == ordered[:-1]).any())
    held = np.zeros(size, dtype=bool)
    held[keys] = True
    return np.count_nonzero(held) != table.size


def find_violations(
    slots: Slots,
    num_logical_experts: int,
    *,
    allow_uneven: bool,
    allow_duplicates: bool,
    layers_may_differ: bool = False,
) -> Violations:
    """Return every broken rule, ordered by kind, layer, rank and slot; empty for a good placement.

    Args:
        slots: what was found, whatever it is.
        num_logical_experts: E.
        allow_uneven: accept ranks with unequally many slots.
        allow_duplicates: accept an expert twice on a rank.
        layers_may_differ: accept ranks that do not have the same number of slots in every layer; those of one layer are
            compared with each other.
    """
    groups: list[ViolationGroup] = []
    if layers_may_differ:
        if not allow_uneven:
            groups.append(_uneven_by_layer(slots.per_rank, num_logical_experts))
    elif not allow_uneven:
        usual = _usual(slots.per_rank, num_logical_experts)
        if usual is not None:  # then this names every rank that differs, in whichever layer
            every = np.full(slots.num_layers, usual)
            groups.append(Uneven(slots.per_rank, np.flatnonzero(slots.per_rank != usual), every))
    else:
        groups.append(differing_layers(slots.per_rank))
    is_known = (slots.expert >= 0) & (slots.expert < num_logical_experts)
    groups.append(OutOfRange(slots, np.flatnonzero(~is_known), num_logical_experts))
    groups.append(Missing(_absent(slots, is_known, num_logical_experts), num_logical_experts))
    if not allow_duplicates:
        groups.append(Duplicate(slots, *_repeated(slots, is_known, num_logical_experts)))
    return Violations(groups)


def differing_layers(per_rank: Int64Array) -> ViolationGroup:
    """Name each rank whose slots are not as many as in layer 0.

    Args:
        per_rank: int64 [L, R].
    """
    return Uneven(per_rank, np.flatnonzero(per_rank != per_rank[0]), None)


def _uneven_by_layer(per_rank: Int64Array, num_logical_experts: int) -> ViolationGroup:
    """Name the ranks whose slots are not as many as the other ranks have in that layer."""
    usual = np.empty(len(per_rank), dtype=np.int64)
    wrong = np.zeros(per_rank.shape, dtype=bool)
    for layer, row in enumerate(per_rank):
        found = _usual(row[None], num_logical_experts)
        usual[layer] = row[0] if found is None else found
        wrong[layer] = found is not None and row != found
    return Uneven(per_rank, np.flatnonzero(wrong), usual)


def _usual(per_rank: Int64Array, num_logical_experts: int) -> int | None:
    """Return how many slots a rank was meant to have; None where they are even."""
    if _is_even(per_rank, int(per_rank[0].sum()), num_logical_experts):
        return None
    # What most ranks hold is what was meant; where that is a tie, what the first of them holds.
    return Counter(per_rank.ravel().tolist()).most_common(1)[0][0]


def _absent(slots: Slots, is_known: NDArray[np.bool_], num_logical_experts: int) -> Int64Array:
    """Return layer · E + expert of those that stand nowhere in their layer."""
    present = np.zeros(slots.num_layers * num_logical_experts, dtype=bool)
    present[(slots.layers() * num_logical_experts + slots.expert)[is_known]] = True
    return np.flatnonzero(~present)


def _repeated(
    slots: Slots, is_known: NDArray[np.bool_], num_logical_experts: int
) -> tuple[Int64Array, Int64Array]:
    """Return the slots whose expert their rank has in an earlier slot too, and the last such slot."""
    known = np.flatnonzero(is_known)
    keys = slots.owners()[known] * num_logical_experts + slots.expert[known]
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    again, before = known[order[twice + 1]], known[order[twice]]
    by_slot = np.argsort(again)
    return again[by_slot], before[by_slot]
