# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Two questions beside the plain plan: how little has to move, and how well a plan holds in the next windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from harness.bench.planner import scoring
from harness.bench.planner.peers import PRECISE, VLLM, Peer
from harness.bench.planner.problems import Problem, lognormal, recorded_tasks
from harness.bench.planner.timing import Pace, compare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]
    Slots = NDArray[np.int64]

# What keeping the old placement gives under the shifted load.
_KEPT_BALANCEDNESS = 0.860
# Slots of a layer that may change, of 288.
_MOVES = (4, 8, 16, 24, 32, 48, 96)

ESFT_FILE = "esft_vanilla_lite_expert_load_w512.npz"
_FITTED_WINDOWS = 8


@dataclass(frozen=True)
class Replan:
    """One way to answer a shifted load.

    Attributes:
        name: policy, and how many moves it was allowed.
        balancedness: under the shifted load, mean over layers.
        changed_percent: slots that hold another expert than before.
        fetched_percent: slots whose expert comes from another rank.
        median_ms: of the call; None where nothing was planned.
    """

    name: str
    balancedness: float
    changed_percent: float
    fetched_percent: float
    median_ms: float | None


def shifted_load(load: Float64Array, old: Slots, ep_size: int) -> tuple[Float64Array, float]:
    """Return a load [L, E] under which the old placement [L, P] is as balanced as asked, and its sigma.

    Every expert's load is multiplied by a log-normal number of that sigma, which is found by bisection.
    """
    noise = np.random.default_rng(1).standard_normal(load.shape)
    low, high = 0.0, 2.0
    for _ in range(40):
        sigma = (low + high) / 2
        kept = scoring.balancedness(old, load * np.exp(sigma * noise), ep_size)
        low, high = (sigma, high) if kept > _KEPT_BALANCEDNESS else (low, sigma)
    return load * np.exp(low * noise), low


def incremental(peers: Sequence[Peer], pace: Pace) -> tuple[list[Replan], float]:
    """Plan 58×256 on 288 slots of 32 ranks, shift the load, and plan again from what is there.

    Returns:
        The answers, the old placement as it is first; and the sigma of the shift.
    """
    planner = next(peer for peer in peers if peer.name == PRECISE)
    problem = Problem("58×256 → 288/32, shifted", lognormal(58, 256), 288, 32, panel=False)
    old = planner.solve(problem).slots
    load, sigma = shifted_load(problem.load, old, problem.ep_size)
    # DeepSeek's answer, with and without duplicates, is vLLM's.
    others = [peer for peer in peers if not peer.name.startswith(("balanced", "deepseek"))]
    tried: list[tuple[int | None, list[Peer]]] = [
        (most, [replace(planner, name=f"{PRECISE}, at most {most}")]) for most in _MOVES
    ]
    tried += [(None, [replace(planner, name=f"{PRECISE}, any number")]), (None, others)]
    replans = [Replan("as it was", scoring.balancedness(old, load, problem.ep_size), 0.0, 0.0, None)]
    for most, some in tried:
        outcome = compare(replace(problem, load=load, current=old, max_moves=most), some, pace)
        for name, figures in outcome.figures.items():
            changed, fetched = scoring.moved_percent(old, figures.answer.slots, problem.ep_size)
            replans.append(Replan(name, figures.balancedness, changed, fetched, figures.median_ms))
    return replans, sigma


def over_time(
    file: Path, peers: Sequence[Peer], pace: Pace
) -> Mapping[str, Mapping[str, tuple[float, float]]]:
    """Plan 26×64 on 80 slots of 16 ranks from eight windows of a recorded load, and score the next eight.

    Args:
        file: counts [16 windows, 26 layers, 64 experts] of each of several tasks.
        peers: of them those that read windows get the windows, and every one gets their sum.
        pace: how often each is timed.

    Returns:
        policy → task → (balancedness of the later windows, median_ms).
    """
    scores: dict[str, dict[str, tuple[float, float]]] = {}
    for task, windows in recorded_tasks(file).items():
        seen, later = windows[:_FITTED_WINDOWS], windows[_FITTED_WINDOWS:]
        for load, how in ((seen, "windows"), (seen.sum(axis=0), "their sum")):
            chosen = [peer for peer in peers if how in _WAYS.get(peer.name, ())]
            outcome = compare(Problem(task, load, 80, 16, panel=False), chosen, pace)
            for name, figures in outcome.figures.items():
                score = scoring.balancedness_over_time(figures.answer.slots, later, 16)
                scores.setdefault(f"{name}, {how}", {})[task] = score, figures.median_ms
    return scores


# Which form of the recorded windows a policy gets.
_WAYS = {
    PRECISE: ("windows", "their sum"),
    VLLM: ("their sum",),
    "deepseek": ("their sum",),
    "FlashLB": ("windows", "their sum"),
}
