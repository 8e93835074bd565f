# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Small layers with groups on nodes: which groups share a node is part of the search. The twin of ``native/assignments.c``.

Nodes are alike, so what counts is into which sets the groups are parted. Every set has a value: what its hottest rank
carries once it is planned, before that a bound. The parts whose highest value is lowest are planned, until all of them are:
no other parts are cooler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Group = frozenset[int]

_MOST_SETS = 256
_MOST_GROUPS = 30
# Of the search for parts, each time.
_MOST_VISITS = 100000
# Of a layer; beyond it the coolest assignment is planned alone.
_MOST_SLOTS = 128
# Of sets that are planned, in all.
_PLANNED_SLOTS = 4096


@dataclass
class PlannedSet:
    """The experts of a set of groups on one node.

    Attributes:
        groups: which.
        value: what its hottest rank carries; before it is planned, what that cannot be below.
        proved: what no placement of it is below.
        slots: [ranks of a node], the experts on each rank; None before it is planned.
        load: [ranks of a node], what each carries.
    """

    groups: Group
    value: float
    proved: float
    slots: list[list[int]] | None = None
    load: list[float] = field(default_factory=list)


def list_sets(num_groups: int, num_nodes: int) -> list[Group]:
    """Return all sets of a node's number of groups, in the order of their numbers in binary; none where these are too many."""
    room = num_groups // num_nodes
    if num_groups > _MOST_GROUPS or math.comb(num_groups, room) > _MOST_SETS:
        return []
    sets = combinations(range(num_groups), room)
    return [frozenset(groups) for groups in sorted(sets, key=lambda one: sum(1 << group for group in one))]


def best_parts(
    sets: list[PlannedSet], value: Callable[[PlannedSet], float], num_nodes: int
) -> tuple[list[PlannedSet], float] | None:
    """Find the parts whose highest value is lowest.

    Returns:
        A set for each node, and their highest value; None where there are too many parts to see.
    """
    every = set().union(*(one.groups for one in sets))
    best: list[PlannedSet] = []
    limit, visits = math.inf, _MOST_VISITS

    def part(chosen: list[PlannedSet], left: set[int], highest: float) -> None:
        nonlocal best, limit, visits
        if len(chosen) == num_nodes:
            best, limit = list(chosen), highest
            return
        first = min(left)  # is in one of the sets
        for one in sets:
            if visits <= 0:
                visits -= 1
                return
            visits -= 1
            if first in one.groups and one.groups <= left and value(one) < limit:
                part([*chosen, one], left - one.groups, max(value(one), highest))

    part([], every, 0.0)
    return (best, limit) if visits > 0 else None


@dataclass
class Assignments:
    """All sets of a layer.

    Attributes:
        sets: those that can share a node.
        plan: plans a set; fills its slots and loads, and returns what is proved.
        num_nodes: how many parts there are.
        slots_per_node: of each node.
    """

    sets: list[PlannedSet]
    plan: Callable[[PlannedSet], float]
    num_nodes: int
    slots_per_node: int

    def search(self, peak: float, tolerance: float) -> list[PlannedSet] | None:
        """Plan sets until the best parts are planned.

        Args:
            peak: what the hottest rank of the parts carries that are planned already.
            tolerance: parts that could be cooler by less are not looked for.

        Returns:
            The best parts; None where those that were there stay.
        """
        left = _PLANNED_SLOTS // self.slots_per_node
        while True:
            # 1. The parts that could be the coolest.
            found = best_parts(self.sets, lambda one: one.value, self.num_nodes)
            if found is None or peak <= found[1] * (1 + tolerance):
                return None
            unplanned = [one for one in found[0] if one.slots is None]
            # 2. All of them are planned: they are.
            if not unplanned:
                return found[0]
            # 3. Else plan them: then they have their true value.
            for one in unplanned:
                if left <= 0:
                    return None
                left -= 1
                one.proved = self.plan(one)
                one.value = max(one.load)


def try_assignments(
    parts: list[PlannedSet], assignments: Assignments, bound: float, tolerance: float
) -> tuple[list[PlannedSet], float]:
    """Look for cooler parts than those of a plan.

    Args:
        parts: the plan's, one for each node.
        assignments: all sets, with a bound as their values; those of the plan are put among them.
        bound: what no placement is below.
        tolerance: as `Assignments.search`.

    Returns:
        The parts to take, and the bound, raised where all parts were seen.
    """
    peak = max(max(part.load) for part in parts)
    # 1. Large layers, and those that are near enough to their bound, stay as they are.
    slots = assignments.slots_per_node * assignments.num_nodes
    if slots > _MOST_SLOTS or peak <= bound * (1 + tolerance) or not assignments.sets:
        return parts, bound
    # 2. What is planned already is known.
    known = {part.groups: part for part in parts}
    assignments.sets = [known.get(one.groups, one) for one in assignments.sets]
    found = assignments.search(peak, tolerance)
    # 3. No placement is below the lowest that any parts could come to.
    proved = best_parts(assignments.sets, lambda one: one.proved, assignments.num_nodes)
    return found or parts, bound if proved is None else max(bound, proved[1])
