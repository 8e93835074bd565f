# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of a placement, checked on flat coordinates so that ragged input is diagnosed too."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._frozen import lazy
from expert_maps.errors import Violation, Violations
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


@dataclass(frozen=True, eq=False)
class Slots:
    """Every slot of a placement, also of a ragged one.

    Attributes:
        expert: int64 [N], the logical expert in each slot, in (layer, rank, slot) order.
        per_rank: int64 [L, R], how many slots each rank has.
    """

    expert: Int64Array
    per_rank: Int64Array

    @classmethod
    def from_flat(cls, expert: Int64Array, per_rank: Int64Array) -> Slots:
        """Build from the experts in (layer, rank, slot) order and the slots per layer and rank."""
        return cls(expert, per_rank)

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.per_rank.shape[0])

    @property
    def ep_size(self) -> int:
        """R."""
        return int(self.per_rank.shape[1])

    @lazy
    def ends(self) -> Int64Array:
        """int64 [L · R]: where each rank's slots end."""
        return np.cumsum(self.per_rank.ravel())

    def owners(self) -> Int64Array:
        """Return layer · R + rank of each slot, int64 [N]."""
        return np.repeat(np.arange(self.per_rank.size), self.per_rank.ravel())

    def layers(self) -> Int64Array:
        """Return the layer of each slot, int64 [N]."""
        return np.repeat(np.arange(self.num_layers), self.per_rank.sum(axis=1))

    def place(self, index: int) -> tuple[int, int, int]:
        """Return the layer, rank and local slot of one of the N slots."""
        owner = int(np.searchsorted(self.ends, index, side="right"))
        first = int(self.ends[owner]) - int(self.per_rank.flat[owner])
        return owner // self.ep_size, owner % self.ep_size, index - first


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
            groups.append(_Uneven(slots.per_rank, np.flatnonzero(slots.per_rank != usual), every))
    else:
        groups.append(differing_layers(slots.per_rank))
    is_known = (slots.expert >= 0) & (slots.expert < num_logical_experts)
    groups.append(_OutOfRange(slots, np.flatnonzero(~is_known), num_logical_experts))
    groups.append(_Missing(_absent(slots, is_known, num_logical_experts), num_logical_experts))
    if not allow_duplicates:
        groups.append(_Duplicate(slots, *_repeated(slots, is_known, num_logical_experts)))
    return Violations(groups)


def differing_layers(per_rank: Int64Array) -> ViolationGroup:
    """Name each rank whose slots are not as many as in layer 0.

    Args:
        per_rank: int64 [L, R].
    """
    return _Uneven(per_rank, np.flatnonzero(per_rank != per_rank[0]), None)


def _uneven_by_layer(per_rank: Int64Array, num_logical_experts: int) -> ViolationGroup:
    """Name the ranks whose slots are not as many as the other ranks have in that layer."""
    usual = np.empty(len(per_rank), dtype=np.int64)
    wrong = np.zeros(per_rank.shape, dtype=bool)
    for layer, row in enumerate(per_rank):
        found = _usual(row[None], num_logical_experts)
        usual[layer] = row[0] if found is None else found
        wrong[layer] = found is not None and row != found
    return _Uneven(per_rank, np.flatnonzero(wrong), usual)


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


@dataclass(frozen=True, eq=False)
class _Uneven:
    """Ranks with another number of slots than meant, or, where none is given, than in layer 0."""

    per_rank: Int64Array  # [L, R]
    cells: NDArray[np.intp]  # layer · R + rank
    usual: Int64Array | None  # [L]

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> Violation:
        layer, rank = divmod(int(self.cells[index]), self.per_rank.shape[1])
        slots = int(self.per_rank[layer, rank])
        found = f"layer {layer}, rank {rank}: {slots} slots"
        if self.usual is None:
            expected = int(self.per_rank[0, rank])
            text = f"{found}, but layer 0 has {expected} on that rank; expected the same in every layer"
        else:
            expected = int(self.usual[layer])
            text = f"{found}; expected {expected}, equally many on every rank"
        return Violation("uneven", text, layer, rank, found=slots, expected=expected)


@dataclass(frozen=True, eq=False)
class _OutOfRange:
    slots: Slots
    which: NDArray[np.intp]
    num_logical_experts: int

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int) -> Violation:
        place = int(self.which[index])
        layer, rank, slot = self.slots.place(place)
        expert = int(self.slots.expert[place])
        known = f"0 … {self.num_logical_experts - 1}"
        text = f"layer {layer}, rank {rank}, slot {slot}: expert {expert} is out of range; expected {known}"
        return Violation("out_of_range", text, layer, rank, slot, expert, expert, known)


@dataclass(frozen=True, eq=False)
class _Missing:
    keys: Int64Array  # layer · E + expert
    num_logical_experts: int

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Violation:
        layer, expert = divmod(int(self.keys[index]), self.num_logical_experts)
        text = f"layer {layer}: expert {expert} is missing; expected on at least one rank"
        return Violation("missing", text, layer, expert=expert)


@dataclass(frozen=True, eq=False)
class _Duplicate:
    slots: Slots
    again: Int64Array
    before: Int64Array

    def __len__(self) -> int:
        return len(self.again)

    def __getitem__(self, index: int) -> Violation:
        place = int(self.again[index])
        layer, rank, slot = self.slots.place(place)
        expert = int(self.slots.expert[place])
        first = self.slots.place(int(self.before[index]))[2]
        text = (
            f"layer {layer}, rank {rank}, slot {slot}: expert {expert} stands twice on this rank "
            f"(also in slot {first})"
        )
        return Violation("duplicate", text, layer, rank, slot, expert)
