# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The best placement of a small layer, by trying all of them. The twin of ``native/exact.c``.

Experts follow each other, the heaviest first; each gets all its copies at once, in every number and on every set of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_maps.reference.layer import add_up, heaviest_first

if TYPE_CHECKING:
    from expert_maps.reference.layer import Layer

# More slots than this are too many to try.
_MOST_TRIED_SLOTS = 32
# What is less cool than this part of the best is rounding.
_NEARLY = 1 - 1e-9


@dataclass
class _Trial:
    """The state of the search: experts are numbered from the heaviest.

    Attributes:
        weight: [E], the load of each expert.
        rest: [E + 1], what an expert and all after it weigh.
        load: [R], what each rank carries so far.
        room: [R], its free slots.
        limit: only placements that are cooler are of use.
        visits: that are left.
        on: [E], the ranks of each expert so far.
        best: the same in the coolest placement so far; None where there is none.
    """

    weight: list[float]
    rest: list[float]
    load: list[float]
    room: list[int]
    limit: float
    visits: int
    on: list[list[int]] = field(default_factory=list)
    best: list[list[int]] | None = None

    def place_expert(self, expert: int, left: int) -> None:
        """Try all that an expert and those after it can do with the slots that are left."""
        after = len(self.weight) - expert - 1
        # 1. All are placed, and below the limit: what follows must be cooler still.
        if after < 0:
            self.limit = max(self.load) * _NEARLY
            self.best = [list(ranks) for ranks in self.on]
            return
        # 2. No room below the limit: nothing to find here.
        if not self._has_room(expert):
            return
        # 3. Every number of copies that leaves enough slots, and not too many, for the experts after it.
        for copies in range(1, min(len(self.load), left - after) + 1):
            if self.visits <= 0:
                return
            share = self.weight[expert] / copies
            if left - copies <= after * len(self.load) and share < self.limit:
                self._place_copies(expert, copies, share, 0, left - copies)

    def _place_copies(self, expert: int, copies: int, share: float, first: int, left: int) -> None:
        """Put copies on every set of ranks from ``first`` on; of ranks with the same load and room the first stand for all."""
        if copies == 0:
            self.place_expert(expert + 1, left)
            return
        for rank in range(first, len(self.load) - copies + 1):
            if self.visits <= 0:
                self.visits -= 1
                return
            self.visits -= 1
            before = self.load[rank]
            if not self.room[rank] or before + share >= self.limit:
                continue
            passed_over = (other for other in range(rank) if other not in self.on[expert])
            if any((self.room[o], self.load[o]) == (self.room[rank], before) for o in passed_over):
                continue
            self.load[rank] += share
            self.room[rank] -= 1
            self.on[expert].append(rank)
            self._place_copies(expert, copies - 1, share, rank + 1, left)
            self.on[expert].pop()
            self.room[rank] += 1
            self.load[rank] = before

    def _has_room(self, expert: int) -> bool:
        left = len(self.weight) - expert
        if any(room > left for room in self.room):  # each of them stands on a rank once at most
            return False
        space = add_up(self.limit - load for load, room in zip(self.load, self.room, strict=True) if room)
        return space > self.rest[expert]


def try_all(layer: Layer, bound: float, visits: int, *, change: bool) -> float:
    """Try all placements that are cooler than a layer's.

    Args:
        layer: a placement; where there is a cooler one and it may ``change``, it is changed to that.
        bound: what is proved already.
        visits: how many steps may be tried.
        change: see there.

    Returns:
        What no placement is below: the least peak where all were tried, else the bound.
    """
    limit = layer.peak * _NEARLY
    if layer.num_slots > _MOST_TRIED_SLOTS or layer.num_ranks > _MOST_TRIED_SLOTS or limit <= bound:
        return bound
    order = heaviest_first(layer.weight)
    weight = [layer.weight[expert] for expert in order]
    rest = [add_up(reversed(weight[first:])) for first in range(len(weight) + 1)]
    trial = _Trial(weight, rest, [0.0] * layer.num_ranks, list(layer.capacity), limit, visits)
    trial.on = [[] for _ in weight]
    trial.place_expert(0, layer.num_slots)
    if trial.best is not None and change:
        _take(layer, order, trial.best)
    return max(trial.limit, bound) if trial.visits > 0 else bound


def _take(layer: Layer, order: list[int], best: list[list[int]]) -> None:
    layer.clear()
    for expert, ranks in zip(order, best, strict=True):
        layer.count[expert] = len(ranks)
        layer.holders[expert] = list(ranks)
    for rank in range(layer.num_ranks):
        for expert, ranks in zip(order, best, strict=True):
            if rank in ranks:
                layer.insert(rank, expert)
    layer.sort_ranks()
