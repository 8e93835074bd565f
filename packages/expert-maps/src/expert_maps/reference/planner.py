# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The parts put together: a plan from scratch. The twin of ``plan_from_scratch`` in ``native/plan.c``."""

from __future__ import annotations

from dataclasses import dataclass

from expert_maps.reference.assignments import Assignments, PlannedSet, list_sets, try_assignments
from expert_maps.reference.bounds import mean_bound, replica_bound
from expert_maps.reference.counts import replicate
from expert_maps.reference.descent import Goal, descend
from expert_maps.reference.exact import try_all
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
# Steps of the search that tries all placements: times slots, where it takes no longer than restarts; and for a proof.
_CHEAP_VISITS, _DEAR_VISITS = 65536, 1000000


@dataclass(frozen=True)
class Problem:
    """What is planned for, the same for all layers.

    Attributes:
        capacity: [R], the slots of each rank.
        num_groups: the router's expert groups; 1 without groups.
        num_nodes: on which groups stay; 1 without.
        tolerance: the gap above the bound at which a layer is good enough.
        max_kicks: restarts of a layer that is not.
        certify: whether dear bounds are sought where the cheap ones do not reach the tolerance.
    """

    capacity: list[int]
    num_groups: int
    num_nodes: int
    tolerance: float
    max_kicks: int
    certify: bool = False

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
    # 2. Each node by itself.
    size = len(load) // problem.num_groups
    parts = []
    for experts in members:
        part = PlannedSet(frozenset(expert // size for expert in experts), 0.0, 0.0)
        part.proved = plan_part(load, experts, bound, problem, part)
        part.value = max(part.load)
        parts.append(part)
    # 3. With several nodes what is proved holds for this split of the groups; perhaps another is cooler.
    if problem.num_nodes == 1:
        bound = parts[0].proved
    else:
        parts, bound = try_assignments(parts, list_assignments(load, problem), bound, problem.tolerance)
    return Plan(
        [slots for part in parts for slots in part.slots or []],
        [one for part in parts for one in part.load],
        bound,
    )


def plan_part(
    load: list[float], experts: list[int], bound: float, problem: Problem, part: PlannedSet
) -> float:
    """Plan what one node has, of which no rank of the hottest one is below the bound; returns what is proved for it."""
    layer = part_layer(load, experts, problem)
    proved = solve(layer, max(mean_bound(layer), bound), problem)
    part.slots = [[experts[expert] for expert in slots] for slots in layer.slots]
    part.load = list(layer.load)
    return proved


def part_layer(load: list[float], experts: list[int], problem: Problem) -> Layer:
    """Return the layer of a node's experts and ranks; nodes are alike."""
    capacity = problem.capacity[: problem.ranks_per_node]
    return Layer([load[expert] for expert in experts], capacity, max(problem.capacity))


def list_assignments(load: list[float], problem: Problem) -> Assignments:
    """Return all sets of groups that can share a node, each with a bound as its value."""
    size = len(load) // problem.num_groups

    def members(groups: frozenset[int]) -> list[int]:
        return [expert for expert in range(len(load)) if expert // size in groups]

    sets = []
    for groups in list_sets(problem.num_groups, problem.num_nodes):
        layer = part_layer(load, members(groups), problem)
        bound = replica_bound(layer, mean_bound(layer))
        sets.append(PlannedSet(groups, bound, bound))
    return Assignments(
        sets,
        lambda one: plan_part(load, members(one.groups), one.value, problem, one),
        problem.num_nodes,
        sum(problem.capacity) // problem.num_nodes,
    )


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
    # 4. Not reached: perhaps it cannot be. Of small layers all placements are tried.
    if not bounded:
        bound = replica_bound(layer, bound)
    bound = try_all(layer, bound, _CHEAP_VISITS // layer.num_slots, change=True)
    # 5. Restarts.
    goal.target = bound * (1 + tolerance)
    few = _RESTARTED_SLOTS // layer.num_slots
    kicks = max(problem.max_kicks, few) if layer.num_slots <= _SMALL else problem.max_kicks
    kick_and_descend(layer, goal, kicks)
    # 6. Dear bounds where they are asked for: last, so that the plan is the same.
    if problem.certify and layer.peak > goal.target:
        bound = certify(layer, bound, tolerance, two_slots=two and bounded)
    return bound


def certify(layer: Layer, bound: float, tolerance: float, *, two_slots: bool) -> float:
    """Seek dear bounds of what is planned."""
    if two_slots and tolerance < LOOSE:
        bound = two_slot_bound(layer, bound, layer.peak, tolerance)
    if layer.peak <= bound * (1 + tolerance):
        return bound
    return try_all(layer, bound, _DEAR_VISITS, change=False)


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
