# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Descent where every moved slot counts. The twin of ``native/budget.c``, which weighs only steps that can be the best.

Each step is the one that removes most *excess*, load above the target, for each slot moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from expert_maps.reference.descent import Goal
    from expert_maps.reference.layer import Layer


# With so few slots a rank it is not swaps that help most.
_MOST_SLOTS_FOR_COPIES = 2
# Of the hottest rank's excess, removed for each move.
_GOOD_ENOUGH = 0.75


class Step(NamedTuple):
    """``rank`` takes part: in a swap it gives ``taken`` for ``given``, else it holds ``taken`` in place of ``given``."""

    is_swap: bool
    rank: int
    given: int
    taken: int


def excess(load: float, target: float) -> float:
    """Return what of a load is above the target."""
    return max(load - target, 0.0)


def price(moves: int) -> float:
    """Return what a step costs; one that moves nothing is cheap but not free: else such steps could go round."""
    return moves if moves > 0 else 0.5


def descend_by_excess(layer: Layer, goal: Goal) -> bool:
    """Bring all ranks to the target while moves are left; returns whether that was possible."""
    while goal.steps > 0 and layer.peak > goal.target:
        goal.steps -= 1
        step = _best_step(layer, goal)
        if step is None:
            break
        if step.is_swap:
            layer.swap(layer.hottest, step.rank, step.given, step.taken)
        else:
            layer.drop_copy(step.rank, step.given)
            layer.add_copy(step.rank, step.taken)
    return layer.peak <= goal.target


def _best_step(layer: Layer, goal: Goal) -> Step | None:
    """Weigh all steps that change the hottest rank; of equal ones the first stays.

    Where any number of moves is allowed, a swap that is nearly the best is sought no further.
    """
    swaps, others = _swaps(layer, goal.target), _reassignments(layer, goal.target)
    if layer.widest <= _MOST_SLOTS_FOR_COPIES:
        best, worth = _better(others, None, goal.least, layer.moves_left)
        return _better(swaps, best, worth, layer.moves_left)[0]
    best, worth = _better(swaps, None, goal.least, layer.moves_left)
    if layer.moves_left is None and worth >= _GOOD_ENOUGH * excess(layer.peak, goal.target):
        return best
    return _better(others, best, worth, layer.moves_left)[0]


def _better(
    steps: Iterator[tuple[Step, float, int]], best: Step | None, worth: float, moves_left: int | None
) -> tuple[Step | None, float]:
    for step, gain, moves in steps:
        if moves_left is not None and moves > moves_left:
            continue
        if gain / price(moves) > worth:
            best, worth = step, gain / price(moves)
    return best, worth


def _reassignments(layer: Layer, target: float) -> Iterator[tuple[Step, float, int]]:
    """Yield (step, excess that is gone, moves) for each other split of the copies that touches the hottest rank."""
    hot = layer.hottest
    for expert in layer.slots[hot]:
        # 1. It gives up a copy for one of another expert,
        steps = [(hot, expert, taken) for taken in range(layer.num_experts)]
        # 2. or one of its experts gets another copy, in place of any copy that can be spared elsewhere.
        for given in range(layer.num_experts):
            if given != expert:
                steps += [(rank, given, expert) for rank in layer.holders[given] if rank != hot]
        for rank, given, taken in steps:
            if (
                layer.count[given] > 1
                and layer.count[taken] < layer.num_ranks
                and rank not in layer.holders[taken]
            ):
                moves = layer.arrival(rank, taken) - layer.arrival(rank, given)
                yield Step(False, rank, given, taken), _gain(layer, rank, given, taken, target), moves  # noqa: FBT003


def _gain(layer: Layer, rank: int, given: int, taken: int, target: float) -> float:
    """Return the excess that is gone once a rank holds ``taken`` in place of ``given``."""
    rise = layer.share(given, -1) - layer.share(given)
    fresh = layer.share(taken, 1)
    fall = layer.share(taken) - fresh
    load = layer.load
    # 1. The rank itself.
    gain = excess(load[rank], target) - excess(load[rank] - layer.share(given) + fresh, target)
    # 2. Those that hold the one get heavier there, and lighter where they hold the other too.
    for holder in layer.holders[given]:
        if holder != rank:
            less = fall if holder in layer.holders[taken] else 0.0
            gain += excess(load[holder], target) - excess(load[holder] + rise - less, target)
    # 3. Those that hold only the other get lighter.
    for holder in layer.holders[taken]:
        if load[holder] > target and holder not in layer.holders[given]:
            gain += load[holder] - target - excess(load[holder] - fall, target)
    return gain


def _swaps(layer: Layer, target: float) -> Iterator[tuple[Step, float, int]]:
    """Yield the same for each swap of a heavier expert of the hottest rank with a lighter one of a rank with room."""
    hot = layer.hottest
    before = excess(layer.load[hot], target)
    for cold in layer.order[:-1]:
        if layer.load[cold] >= target:
            return  # no room there, nor on any that follows
        for given in reversed(layer.slots[hot]):
            for taken in layer.slots[cold]:
                less = layer.share(given) - layer.share(taken)
                if layer.share(taken) >= layer.share(given):
                    break
                if layer.fits(cold, given) and layer.fits(hot, taken):
                    after = excess(layer.load[hot] - less, target)
                    gain = before - after - excess(layer.load[cold] + less, target)
                    yield Step(True, cold, given, taken), gain, layer.moves_of_swap(hot, cold, given, taken)  # noqa: FBT003
