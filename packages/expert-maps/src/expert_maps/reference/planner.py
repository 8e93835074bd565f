# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The parts put together: a plan from scratch. The twin of ``plan_from_scratch`` in ``native/plan.c``."""

from __future__ import annotations

from dataclasses import dataclass

from expert_maps.reference.bounds import mean_bound, replica_bound
from expert_maps.reference.counts import replicate
from expert_maps.reference.descent import Goal, descend
from expert_maps.reference.kicks import kick_and_descend
from expert_maps.reference.layer import Layer
from expert_maps.reference.nodes import assign_groups, list_members, sum_groups
from expert_maps.reference.packing import pack
from expert_maps.reference.two_slot_bound import two_slot_bound
from expert_maps.reference.two_slots import has_two_slots, search_counts

# From this tolerance on less is searched, and nine tenths of it are aimed at.
LOOSE = 0.005
_AIM = 0.9
# The first target is 1 % above the bound, and the distance is halved until it is near the tolerance.
_FIRST_GAP = 0.01
# Improvements below this part of the tolerance are noise.
_NOISE = 0.03
# Where the largest share is less than this part of the bound, the mean is near to what can be reached.
_LARGE_SHARE = 0.75
# Slots; restarts of small problems cost next to nothing, and there a descent is soonest caught.
_SMALL = 128
_RESTARTED_SLOTS = 4096


@dataclass(frozen=True)
class Problem:
    """What is planned for, the same for all layers.

    Attributes:
        capacity: [R], the slots of each rank.
        num_groups: the router's expert groups; 1 without groups.
        num_nodes: on which groups stay; 1 without.
        tolerance: the gap above the bound at which a layer is good enough.
        max_kicks: restarts of a layer that is not.
    """

    capacity: list[int]
    num_groups: int
    num_nodes: int
    tolerance: float
    max_kicks: int

    @property
    def ranks_per_node(self) -> int:
        """R / nodes."""
        return len(self.capacity) // self.num_nodes


@dataclass
class Plan:
    """A layer's answer: the experts of each rank, what it carries, and what no placement is below."""

    slots: list[list[int]]
    load: list[float]
    bound: float

    @property
    def peak(self) -> float:
        """What the hottest rank carries."""
        return max(self.load)


def plan_layer(load: list[float], problem: Problem) -> Plan:
    """Plan one layer from scratch.

    Args:
        load: [E], the load of each expert.
        problem: what is planned for.
    """
    # 1. Groups to nodes; no rank of the hottest node is below its mean.
    members, node_bound = split_over_nodes(load, problem)
    bound = node_bound / problem.ranks_per_node
    plan, proved = Plan([], [], bound), 0.0
    # 2. Each node by itself.
    for node, experts in enumerate(members):
        first = node * problem.ranks_per_node
        layer = Layer(
            [load[expert] for expert in experts],
            problem.capacity[first : first + problem.ranks_per_node],
            max(problem.capacity),
        )
        proved = max(proved, solve(layer, max(mean_bound(layer), bound), problem))
        plan.slots += [[experts[expert] for expert in slots] for slots in layer.slots]
        plan.load += layer.load
    # 3. With one node what is proved holds for the layer; with several only for this split of the groups.
    if problem.num_nodes == 1:
        plan.bound = proved
    return plan


def split_over_nodes(load: list[float], problem: Problem) -> tuple[list[list[int]], float]:
    """Return the experts of each node, and what no assignment's hottest node is below (0 with one node)."""
    if problem.num_nodes == 1:
        return [list(range(len(load)))], 0.0
    groups = sum_groups(load, problem.num_groups)
    node_of, bound = assign_groups(groups, problem.num_nodes, problem.tolerance)
    return list_members(node_of, len(load), problem.num_nodes), bound


def solve(layer: Layer, bound: float, problem: Problem) -> float:
    """Place the copies of a layer, or of a node's part of it.

    Args:
        layer: with nothing placed; its slots are filled.
        bound: what its hottest rank cannot be below.
        problem: its tolerance says when it is good enough.

    Returns:
        The bound, raised where it was not reached and a dearer one says that it could not be.
    """
    tolerance, two, bounded = problem.tolerance, has_two_slots(layer), False
    # 1. Counts; with two slots a rank they decide everything.
    layer.count = replicate(layer.weight, layer.num_ranks, layer.num_slots)
    if two:
        if max(layer.shares()) > _LARGE_SHARE * bound:
            bound, bounded = replica_bound(layer, bound), True
        search_counts(layer, bound, tolerance)
    # 2. Packing.
    pack(layer)
    # 3. Descent, from a loose target to the one that is meant.
    aim = tolerance if tolerance < LOOSE else _AIM * tolerance
    goal = Goal(bound * (1 + aim), bound * tolerance * _NOISE, 1000 + 30 * layer.num_ranks)
    goal.recount = not (two and tolerance >= LOOSE)
    if descend_in_stages(layer, goal, bound, aim) or layer.peak <= bound * (1 + tolerance):
        return bound
    # 4. Not reached: perhaps it cannot be.
    if not bounded:
        bound = replica_bound(layer, bound)
    if two and bounded and tolerance < LOOSE:
        bound = two_slot_bound(layer, bound, layer.peak, tolerance)
    # 5. Restarts.
    goal.target = bound * (1 + tolerance)
    few = _RESTARTED_SLOTS // layer.num_slots
    kicks = max(problem.max_kicks, few) if layer.num_slots <= _SMALL else problem.max_kicks
    kick_and_descend(layer, goal, kicks)
    return bound


def descend_in_stages(layer: Layer, goal: Goal, bound: float, tolerance: float) -> bool:
    """Descend to targets that come down to the goal's: a loose one is met by many swaps, and the first is taken."""
    target, gap = goal.target, _FIRST_GAP
    while gap > 2 * tolerance:
        goal.target = bound * (1 + gap)
        if not descend(layer, goal):  # no step helps, whatever the target
            goal.target = target
            return False
        gap /= 2
    goal.target = target
    return descend(layer, goal)
