# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Time policies in turn, so that what else the machine does slows all of them alike, and score what they gave."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.bench.planner import scoring
from harness.bench.planner.peers import Answer, Peer, RefusedError, ours

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from harness.bench.planner.problems import Problem

# However slow a policy is, a median needs some runs.
_FEWEST = 3


@dataclass(frozen=True)
class Pace:
    """How often a policy is timed.

    Attributes:
        repeats: rounds, in each of which every policy has a turn.
        budget_s: a policy that has taken so many seconds over one problem is timed no more, from the third round.
    """

    repeats: int = 9
    budget_s: float = 5.0


@dataclass(frozen=True)
class Figures:
    """One policy on one problem.

    Attributes:
        answer: what it gave; the median is of calls after the one that gave it.
        median_ms: of a call, input in the policy's own form.
        runs: timed calls.
        gap_percent: hottest rank over the lower bound, mean over layers.
        balancedness: mean over layers of mean / max rank load.
        violations: what the answer breaks.
    """

    answer: Answer
    median_ms: float
    runs: int
    gap_percent: float
    balancedness: float
    violations: scoring.Violations


@dataclass
class Outcome:
    """All policies on one problem.

    Attributes:
        problem: what was planned.
        figures: policy → its figures, in the order of the peers.
        refused: policy → why it gave no answer.
    """

    problem: Problem
    figures: dict[str, Figures] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str, to: str) -> float | None:
        """Return how many times faster a policy is than another; None where one of them has no time."""
        if name not in self.figures or to not in self.figures:
            return None
        return self.figures[to].median_ms / self.figures[name].median_ms


def compare(problem: Problem, peers: Sequence[Peer], pace: Pace) -> Outcome:
    """Let every peer plan a problem, score the answers, then time the peers in turn."""
    outcome = Outcome(problem)
    calls: dict[str, Callable[[], Any]] = {}
    answers: dict[str, Answer] = {}
    for peer in peers:
        try:
            # The first call is not timed: it compiles, allocates and fills caches.
            answers[peer.name] = peer.solve(problem)
            calls[peer.name] = peer.prepare(problem)
        except RefusedError as error:
            outcome.refused[peer.name] = str(error)
    seconds = time_in_turn(calls, pace)
    bound = common_bound(problem, [*answers.values(), *certified(problem)])
    for name, answer in answers.items():
        outcome.figures[name] = _figures(problem, answer, bound, seconds[name])
    return outcome


def time_in_turn(calls: dict[str, Callable[[], Any]], pace: Pace) -> dict[str, list[float]]:
    """Return the processor seconds of each call, one turn each in a round: what else the machine does is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(pace.repeats):
        for name, call in calls.items():
            if done >= _FEWEST and sum(seconds[name]) > pace.budget_s:
                continue
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return seconds


def certified(problem: Problem) -> list[Answer]:
    """Return `balanced` once more with all bounds that it can prove, outside of what is timed; nothing where it refuses."""
    whole = replace(problem, load=problem.total, current=None)
    try:
        return [ours("certified", "balanced", certify=True).solve(whole)]
    except RefusedError:
        return []


def common_bound(problem: Problem, answers: Sequence[Answer]) -> NDArray[np.float64]:
    """Return the highest of the bounds that were stated, [L]: each of them holds for every placement."""
    bounds = [answer.bound for answer in answers if answer.bound is not None]
    return np.max(bounds, axis=0) if bounds else np.zeros(len(problem.total))


def _figures(
    problem: Problem, answer: Answer, bound: NDArray[np.float64], seconds: Sequence[float]
) -> Figures:
    slots, load, ranks = answer.slots, problem.total, problem.ep_size
    broken = scoring.violations(slots, load.shape[1], ranks, problem.num_groups, problem.num_nodes)
    # What is no expert cannot be weighed.
    valid = bool(((slots >= 0) & (slots < load.shape[1])).all())
    return Figures(
        answer,
        statistics.median(seconds) * 1000,
        len(seconds),
        scoring.gap_percent(slots, load, ranks, bound) if valid else float("nan"),
        scoring.balancedness(slots, load, ranks) if valid else float("nan"),
        broken,
    )
