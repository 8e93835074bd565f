# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One layer while it is planned: which experts stand on which rank, and what each rank carries.

The twin of ``native/layer.c``. Every step of the planner changes a `Layer` by the few verbs of this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def add_up(values: Iterable[float]) -> float:
    """Add from left to right, as the compiled planner does: `sum` and `numpy.sum` round differently."""
    total = 0.0
    for value in values:
        total += value
    return total


def heaviest_first(keys: Sequence[float]) -> list[int]:
    """Return the indices of keys from the largest to the smallest; equal ones keep their order.

    Keys are told apart to 24 binary digits of the largest: finer differences decide nothing in a packing.
    """
    key = np.asarray(keys, dtype=np.float64)
    top = key.max(initial=0.0)
    digits = (key / top * 16777215.0).astype(np.int64) if top > 0 else np.zeros(len(key), dtype=np.int64)
    return np.argsort(-digits, kind="stable").tolist()


@dataclass
class Layer:
    """The state of one balancing problem: a layer, or the part of one that a node has.

    Attributes:
        weight: [E], the load of each expert.
        capacity: [R], the slots of each rank.
        widest: the most slots that any rank has, on any node: see `swap_pairs`.
        count: [E], copies of each expert.
        slots: [R], the experts on each rank, the smallest share first.
        holders: [E], the ranks of each expert's copies.
        load: [R], what each rank carries.
        order: the ranks from the lightest to the hottest.
        was: [R], the experts that each rank held before; None without a placement in use.
        moves_left: how many slots may still receive an expert that was not on their rank; None for any number.
    """

    weight: list[float]
    capacity: list[int]
    widest: int = 0
    count: list[int] = field(default_factory=list)
    slots: list[list[int]] = field(default_factory=list)
    holders: list[list[int]] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    was: list[set[int]] | None = None
    moves_left: int | None = None

    def __post_init__(self) -> None:
        """Start with one copy of each expert, and none of them placed."""
        self.widest = self.widest or max(self.capacity)
        self.count = self.count or [1] * self.num_experts
        self.clear()

    def clear(self) -> None:
        """Empty all ranks."""
        self.slots = [[] for _ in self.capacity]
        self.holders = [[] for _ in self.weight]
        self.load = [0.0] * self.num_ranks
        self.order = list(range(self.num_ranks))

    def copy(self) -> Layer:
        """Return the same state, to come back to."""
        saved = Layer(self.weight, self.capacity, self.widest, was=self.was)
        saved.take(self)
        return saved

    def take(self, other: Layer) -> None:
        """Take over the state of another layer of the same problem."""
        self.count, self.load, self.order = list(other.count), list(other.load), list(other.order)
        self.slots = [list(slots) for slots in other.slots]
        self.holders = [list(holders) for holders in other.holders]
        self.moves_left = other.moves_left

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.weight)

    @property
    def num_ranks(self) -> int:
        """R, which is also how many copies an expert can have: one on each rank."""
        return len(self.capacity)

    @property
    def num_slots(self) -> int:
        """P."""
        return sum(self.capacity)

    @property
    def hottest(self) -> int:
        """The rank that carries most."""
        return self.order[-1]

    @property
    def peak(self) -> float:
        """What the hottest rank carries."""
        return self.load[self.hottest]

    def share(self, expert: int, more: int = 0) -> float:
        """Return what each copy of an expert carries, or would carry with some more of them; without any, its load."""
        copies = self.count[expert] + more
        return self.weight[expert] / copies if copies else self.weight[expert]

    def shares(self) -> list[float]:
        """Return every expert's share, [E]."""
        return [self.share(expert) for expert in range(self.num_experts)]

    def fits(self, rank: int, expert: int) -> bool:
        """Whether a rank can take a copy of an expert that is swapped; it stands on a rank at most once."""
        return self.count[expert] == 1 or rank not in self.holders[expert]

    def arrival(self, rank: int, expert: int) -> int:
        """Return the moves that it costs to bring an expert to a rank: none if it was there before."""
        return int(self.was is not None and expert not in self.was[rank])

    def insert(self, rank: int, expert: int) -> None:
        """Put an expert among a rank's slots, behind those of the same share."""
        slots, i = self.slots[rank], len(self.slots[rank])
        while i > 0 and self.share(slots[i - 1]) > self.share(expert):
            i -= 1
        slots.insert(i, expert)

    def weigh(self, rank: int) -> None:
        """Add up a rank's load, and move the rank to its place in the order."""
        self.load[rank] = add_up(map(self.share, self.slots[rank]))
        self.reorder(rank)

    def reorder(self, rank: int) -> None:
        """Move a rank to its place in the order; among equal ones it goes no further than it must."""
        order, load = self.order, self.load
        i = order.index(rank)
        del order[i]
        while i > 0 and load[order[i - 1]] > load[rank]:
            i -= 1
        while i < len(order) and load[order[i]] < load[rank]:
            i += 1
        order.insert(i, rank)

    def sort_ranks(self) -> None:
        """Add up all loads, and sort all ranks."""
        self.load = [add_up(map(self.share, slots)) for slots in self.slots]
        self.order = heaviest_first(self.load)[::-1]
        for rank in range(self.num_ranks):  # what the digits did not tell apart
            self.reorder(rank)

    def revalue(self, expert: int) -> None:
        """Put all copies of an expert where their new share belongs."""
        for rank in self.holders[expert]:
            self.slots[rank].remove(expert)
            self.insert(rank, expert)
            self.weigh(rank)

    def add_copy(self, rank: int, expert: int) -> None:
        """Give an expert a copy on a rank with room."""
        self.holders[expert].append(rank)
        self.count[expert] += 1
        self.insert(rank, expert)
        if self.moves_left is not None:
            self.moves_left -= self.arrival(rank, expert)
        self.revalue(expert)

    def drop_copy(self, rank: int, expert: int) -> None:
        """Take an expert's copy from a rank."""
        self.slots[rank].remove(expert)
        self.weigh(rank)
        holders = self.holders[expert]
        holders[holders.index(rank)] = holders[-1]  # the last one takes its place
        holders.pop()
        self.count[expert] -= 1
        if self.moves_left is not None:
            self.moves_left += self.arrival(rank, expert)
        if holders:
            self.revalue(expert)

    def swap(self, hot: int, cold: int, given: int, taken: int) -> None:
        """Let two ranks exchange an expert: ``given`` goes to ``cold``, ``taken`` to ``hot``."""
        if self.moves_left is not None:
            self.moves_left -= self.moves_of_swap(hot, cold, given, taken)
        self.slots[hot].remove(given)
        self.slots[cold].remove(taken)
        self.insert(hot, taken)
        self.insert(cold, given)
        self.holders[given][self.holders[given].index(hot)] = cold
        self.holders[taken][self.holders[taken].index(cold)] = hot
        self.weigh_both(hot, cold)

    def weigh_both(self, first: int, second: int) -> None:
        """Add up the loads of two ranks before either is moved in the order."""
        for rank in (first, second):
            self.load[rank] = add_up(map(self.share, self.slots[rank]))
        for rank in (first, second):
            self.reorder(rank)

    def moves_of_swap(self, hot: int, cold: int, given: int, taken: int) -> int:
        """Return the moves of a swap: two, and less for each expert that returns or that was not there before."""
        return (
            self.arrival(hot, taken)
            - self.arrival(hot, given)
            + self.arrival(cold, given)
            - self.arrival(cold, taken)
        )
