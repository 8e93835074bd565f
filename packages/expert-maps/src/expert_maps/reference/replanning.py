# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A plan from the placement in use, with no more moves than allowed. The twin of ``native/replan.c``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from expert_maps.reference.bounds import replica_bound
from expert_maps.reference.budget import descend_by_excess, excess
from expert_maps.reference.descent import Goal, descend
from expert_maps.reference.incremental import arrivals, complete, start_from
from expert_maps.reference.layer import Layer, add_up
from expert_maps.reference.nodes import list_members, sum_groups
from expert_maps.reference.planner import Plan, Problem, plan_layer, split_over_nodes
from expert_maps.reference.relabelling import keep_places, relabel

if TYPE_CHECKING:
    from collections.abc import Sequence

    Held = Sequence[Sequence[int]]

_LEAST = 1e-6
_ROUNDING = 1e-12
# How often the target is tried again, between what is wished for and what there is.
_NARROWINGS = 3
# Moves of all those attempts: after more of them there is no further one.
_MOST_SPENT = 150
# With two slots a rank steps bring no placement that is hotter than this down to a plan from scratch.
_NEAR_PLAN = 1.05
# How often the target of a descent is raised that has no moves left.
_RAISES = 3
# A rank above this fraction of the target has no room.
_NEAR_TARGET = 0.998
# What the last target saves, beside the excess that it takes away: steps that need not be so good.
_FAIR = 1.3
# Of a layer's slots: with a budget of fewer no plan anew is within reach. For a layer of few slots it is made all the same.
_FEW, _SMALL = 0.4, 128


@dataclass
class Replanned:
    """A layer's answer.

    Attributes:
        slots: [R], the experts of each rank; what stays keeps its slot.
        bound: what no placement is below.
        is_anew: whether it is a plan from scratch, under names that can differ from the compiled planner's.
    """

    slots: list[list[int]]
    bound: float
    is_anew: bool


@dataclass
class _Attempt:
    slots: list[list[int]]
    peak: float
    moves: int
    reached: bool
    left: float = 0.0  # the excess over the target that the moves were not enough for
    hot: int = 0  # the ranks that had any
    before: float = 0.0  # the hottest rank's load before the steps: with what cannot be avoided alone


class NotGroupedError(Exception):
    """The present placement has a group on several nodes, and the budget does not allow to put that right."""


def replan_layer(load: list[float], problem: Problem, held: Held, max_moves: int | None) -> Replanned:
    """Plan one layer from the placement in use.

    Args:
        load: [E], the load of each expert.
        problem: what is planned for.
        held: [R], the experts on each rank now; −1 for an empty slot.
        max_moves: slots that may receive an expert, beyond those that must; None for any number.

    Raises:
        NotGroupedError: as it says.
    """
    # 1. What no placement is below: the hottest node's mean, or the mean of all.
    bound = split_over_nodes(load, problem)[1] / problem.ranks_per_node
    bound = max(bound, add_up(load) / len(problem.capacity))
    members = split_as_before(load, problem, held)
    best, reached, forced, wished = None, math.inf, 0, bound * (1 + problem.tolerance)
    # 2. With two slots a rank the mean is seldom reached: then what a plan from scratch reaches is what is aimed at.
    anew = None
    slots = sum(problem.capacity)
    if max_moves is None and _is_of_two(problem):
        anew = plan_layer(load, problem)
        wished = max(wished, anew.peak)
    # 3. From where the copies are, within the budget.
    if members is not None:
        best = _within_budget(load, problem, members, held, wished, max_moves)
        reached, forced = best.peak, _count_arrivals(best.slots, held) - best.moves
        if best.reached:
            proved = bound if anew is None else max(bound, anew.bound)
            return Replanned(_kept(best.slots, held), proved, is_anew=False)
        if problem.num_nodes == 1 and slots > _SMALL and max_moves is not None and max_moves < _FEW * slots:
            layer = Layer(list(load), problem.capacity)
            return Replanned(_kept(best.slots, held), replica_bound(layer, bound), is_anew=False)
    # 4. Not near enough: a plan from scratch, under the names with which most stays, if it is cooler and within the budget.
    anew = anew or plan_layer(load, problem)
    bound = max(bound, anew.bound)
    if best is None or anew.peak < reached:
        order = relabel(anew.slots, held, problem.capacity, problem.num_nodes)
        named = [anew.slots[rank] for rank in order]
        if max_moves is None or _count_arrivals(named, held) <= forced + max_moves:
            return Replanned(_kept(named, held), bound, is_anew=True)
        if best is None:
            raise NotGroupedError
    return Replanned(_kept(best.slots, held), bound, is_anew=False)


def _count_arrivals(slots: Held, held: Held) -> int:
    return sum(expert not in held[rank] for rank, experts in enumerate(slots) for expert in experts)


def _kept(slots: Held, held: Held) -> list[list[int]]:
    return [keep_places(experts, before) for experts, before in zip(slots, held, strict=True)]


def split_as_before(load: list[float], problem: Problem, held: Held) -> list[list[int]] | None:
    """Return the experts of each node with every group where it is now; groups that no node has go to the lightest.

    Returns:
        None where a group is on two nodes, or a node has more groups than it should.
    """
    nodes, groups = problem.num_nodes, problem.num_groups
    if nodes == 1:
        return [list(range(len(load)))]
    size, room = len(load) // groups, groups // nodes
    on = [
        {
            rank // problem.ranks_per_node
            for rank, held_ in enumerate(held)
            if any(e // size == g for e in held_ if e >= 0)
        }
        for g in range(groups)
    ]
    if any(len(found) > 1 for found in on):
        return None
    node_of = [min(found, default=-1) for found in on]
    if any(node_of.count(node) > room for node in range(nodes)):
        return None
    sums = sum_groups(load, groups)
    total = [add_up(sums[g] for g in range(groups) if node_of[g] == node) for node in range(nodes)]
    for group in range(groups):
        if node_of[group] < 0:
            node = min((n for n in range(nodes) if node_of.count(n) < room), key=total.__getitem__)
            node_of[group] = node
            total[node] += sums[group]
    return list_members(node_of, len(load), nodes)


def _is_of_two(problem: Problem) -> bool:
    return problem.num_nodes == 1 and sum(problem.capacity) == 2 * len(problem.capacity)


def _within_budget(
    load: list[float],
    problem: Problem,
    members: list[list[int]],
    held: Held,
    wished: float,
    budget: int | None,
) -> _Attempt:
    """As `_seek_target`; where steps have made a rank hotter than any was, nothing moves that may stay."""
    best = _seek_target(load, problem, members, held, wished, budget)
    if best.peak <= best.before * (1 + _ROUNDING):
        return best
    return replace(_attempt(load, problem, members, held, Goal(math.inf, 0.0, 0), 0), reached=False)


def _seek_target(
    load: list[float],
    problem: Problem,
    members: list[list[int]],
    held: Held,
    wished: float,
    budget: int | None,
) -> _Attempt:
    """Find the lowest target that the budget is enough for: one that is too low spends it on a few ranks."""
    least = wished * _LEAST
    best = last = _attempt(load, problem, members, held, Goal(wished, least, 0), budget)
    if best.reached or budget is None:
        return best
    low, high, target = wished, best.peak, wished
    for attempts in range(1, _NARROWINGS + 1):
        if high <= low * (1 + problem.tolerance / 4) or attempts * budget >= _MOST_SPENT:
            break
        # What was missing says what the next target may be: each rank above it saves as much as it is raised.
        is_last = attempts == _NARROWINGS or (attempts + 1) * budget >= _MOST_SPENT
        target += (_FAIR if is_last else 1) * last.left / last.hot
        if last.reached or target >= high:
            target = (low + high) / 2
        last = _attempt(load, problem, members, held, Goal(target, least, 0), budget)
        if last.peak < best.peak:
            best = last
        if last.reached:
            high = target
        else:
            low = target
        high = min(high, best.peak)
    return best


def _attempt(
    load: list[float],
    problem: Problem,
    members: list[list[int]],
    held: Held,
    goal: Goal,
    budget: int | None,
) -> _Attempt:
    """Bring every node to the target with at most so many moves in all."""
    ranks, outcome = problem.ranks_per_node, _Attempt([], 0.0, 0, reached=True)
    widest = max(*problem.capacity, *map(len, held))
    for node, experts in enumerate(members):
        part = slice(node * ranks, (node + 1) * ranks)
        number = {expert: index for index, expert in enumerate(experts)}
        layer = Layer([load[expert] for expert in experts], problem.capacity[part], widest)
        start_from(layer, [[number[e] for e in on_rank if e in number] for on_rank in held[part]])
        complete(layer)
        forced = arrivals(layer)
        layer.moves_left = budget
        outcome.before = max(outcome.before, layer.peak)
        outcome.hot += _count_above(layer, goal.target)
        own = Goal(goal.target, goal.least, 200 + 10 * ranks)
        if budget is None and _is_of_two(problem) and layer.peak > _NEAR_PLAN * goal.target:
            own.steps = 0
        done = descend_by_excess(layer, own) or (budget is None and descend(layer, own))
        outcome.reached &= done
        outcome.left += _sum_excess(layer, goal.target)
        if budget is not None:
            _raise_target(layer, goal)
        outcome.moves += arrivals(layer) - forced
        if budget is not None:
            budget = layer.moves_left
        outcome.peak = max(outcome.peak, layer.peak)
        outcome.slots += [[experts[expert] for expert in slots] for slots in layer.slots]
    return outcome


def _raise_target(layer: Layer, goal: Goal) -> None:
    """Spread what is left without moves: at a higher target others have room, and changed slots may change again."""
    target = goal.target
    for _ in range(_RAISES):
        if layer.peak <= target:
            break
        before = layer.peak
        target += _sum_excess(layer, target) / (_count_above(layer, target * _NEAR_TARGET) + 1)
        descend_by_excess(layer, Goal(target, goal.least, 200 + 10 * layer.num_ranks))
        if layer.peak >= before:
            break


def _sum_excess(layer: Layer, target: float) -> float:
    return add_up(excess(load, target) for load in layer.load)


def _count_above(layer: Layer, load: float) -> int:
    return sum(of_rank > load for of_rank in layer.load)


__all__ = ["NotGroupedError", "Plan", "Replanned", "replan_layer", "split_as_before"]
