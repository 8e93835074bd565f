# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The planner's step from a placement in use, slowly: every step is weighed, and a placement is a set for each rank.

Written from ``docs/planner.md``: of all steps about the hottest rank, the one that removes most load above the target for
each slot moved.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Ranks = list[set[int]]
    # rank → experts that leave and that come
    Step = dict[int, tuple[int, int]]


def rank_loads(load: NDArray[np.float64], ranks: Ranks) -> NDArray[np.float64]:
    """Return what each rank carries if every expert's copies share its load evenly."""
    copies = np.zeros(len(load))
    for held in ranks:
        copies[list(held)] += 1
    return np.array([sum(load[e] / copies[e] for e in held) for held in ranks])


def arrivals(before: Ranks, after: Ranks) -> int:
    """Return how many experts stand on a rank that did not hold them."""
    return sum(len(new - old) for old, new in zip(before, after, strict=True))


def steps(ranks: Ranks, hot: int, num_experts: int) -> Iterator[Step]:
    """Yield every swap with another rank, and every slot that can hold another copy for the hot rank's good."""
    count = [sum(e in held for held in ranks) for e in range(num_experts)]
    for other, held in enumerate(ranks):
        if other == hot:
            continue
        for given, taken in product(ranks[hot] - held, held - ranks[hot]):
            yield {hot: (given, taken), other: (taken, given)}
        # Another copy of an expert of the hot rank, in place of one that is left elsewhere.
        for extra, out in product(ranks[hot] - held, held):
            if count[out] > 1:
                yield {other: (out, extra)}
    for out, new in product(ranks[hot], set(range(num_experts)) - ranks[hot]):
        if count[out] > 1:
            yield {hot: (out, new)}


def taken_step(ranks: Ranks, step: Step) -> Ranks:
    """Return the ranks after a step."""
    return [
        held - {step[rank][0]} | {step[rank][1]} if rank in step else held for rank, held in enumerate(ranks)
    ]


def best_worth(load: NDArray[np.float64], before: Ranks, ranks: Ranks, target: float, left: int) -> float:
    """Return the most load above the target that a step removes for each slot it moves; half a slot at least is counted."""
    loads = rank_loads(load, ranks)
    excess = np.maximum(loads - target, 0).sum()
    best = 0.0
    for step in steps(ranks, int(loads.argmax()), len(load)):
        after = taken_step(ranks, step)
        moves = arrivals(before, after) - arrivals(before, ranks)
        if moves <= left:
            gain = excess - np.maximum(rank_loads(load, after) - target, 0).sum()
            best = max(best, gain / max(moves, 0.5))
    return best
