# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of a plan from the placement in use, each beside a slow twin: the step, and the names of the ranks."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from balanced_cases import Problem
from replan_twin import arrivals, best_worth, rank_loads, taken_step
from scipy.optimize import linear_sum_assignment

from expert_maps import plan, rank_load, rescale
from expert_maps._library import load_library

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps import Placement

SWAP, REASSIGNMENT = 1, 2


def random_ranks(rng: np.random.Generator, experts: int, ranks: int, room: int) -> NDArray[np.int32]:
    """Return int32 [ranks, room]: every expert somewhere, none twice on a rank."""
    copies = np.ones(experts, dtype=int)
    while copies.sum() < ranks * room:
        copies[rng.choice(np.nonzero(copies < ranks)[0])] += 1
    slots: list[list[int]] = [[] for _ in range(ranks)]
    for expert in sorted(range(experts), key=lambda e: -copies[e]):
        # The emptiest ranks first, so that the last expert still finds as many as it needs.
        for rank in sorted(range(ranks), key=lambda r: (len(slots[r]), rng.random()))[: copies[expert]]:
            slots[rank].append(expert)
    return np.array(slots, dtype=np.int32)


def found_step(
    load: NDArray[np.float64], before: NDArray[np.int32], now: NDArray[np.int32], target: float, left: int
) -> tuple[float, list[int]]:
    """Return the planner's step: its worth; its kind, the other rank (its own, of a reassignment), what goes and comes."""
    worth, step = np.zeros(1), np.zeros(4, dtype=np.int32)
    ranks, room = now.shape
    status = load_library().expert_maps_part_best_step(
        *(ctypes.c_int64(value) for value in (len(load), ranks, room)),
        *(ctypes.c_void_p(array.ctypes.data) for array in (load, before, now)),
        ctypes.c_double(target),
        ctypes.c_int64(left),
        *(ctypes.c_void_p(array.ctypes.data) for array in (worth, step)),
    )
    assert status == 0
    return float(worth[0]), step.tolist()


@pytest.mark.parametrize(
    ("experts", "ranks", "room", "seeds"),
    [(4, 4, 2, 60), (6, 4, 2, 20), (8, 4, 3, 12), (12, 4, 3, 60), (10, 8, 3, 6), (5, 8, 4, 6), (7, 66, 2, 1)],
)
def test_no_step_is_worth_more_than_the_planner_takes(
    experts: int, ranks: int, room: int, seeds: int
) -> None:
    kinds = set()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        load = rng.lognormal(sigma=1, size=experts)
        now = random_ranks(rng, experts, ranks, room)
        # A few slots changed since, or all.
        before = now if seed % 3 else random_ranks(rng, experts, ranks, room)
        held, was = [set(row.tolist()) for row in now], [set(row.tolist()) for row in before]
        loads = rank_loads(load, held)
        for nearness in (0.02, 0.5, 0.95):
            target = float(loads.mean() + nearness * (loads.max() - loads.mean()))
            for left in (0, 1, 2, 100):
                worth, (kind, rank, goes, comes) = found_step(load, before, now, target, left)
                assert worth == pytest.approx(best_worth(load, was, held, target, left), rel=1e-8, abs=1e-12)
                kinds.add(kind)
                if not kind:
                    continue
                hot = int(loads.argmax())
                # A swap gives the hot rank's expert to the other; a reassignment is about one rank.
                step = {hot: (goes, comes), rank: (comes, goes)} if kind == SWAP else {rank: (goes, comes)}
                after = taken_step(held, step)
                moves = arrivals(was, after) - arrivals(was, held)
                gain = np.maximum(loads - target, 0) - np.maximum(rank_loads(load, after) - target, 0)
                assert moves <= left
                assert worth == pytest.approx(gain.sum() / max(moves, 0.5), rel=1e-8)
    assert (REASSIGNMENT if ranks * room > experts else SWAP) in kinds


def kept_by_best_names(before: Placement, after: Placement, layer: int, nodes: int) -> int:
    """Return how many experts could be on their rank already if the new ranks had their best names."""
    size = before.ep_size // nodes
    overlap = np.array(
        [
            [
                len(np.intersect1d(after.local_experts(layer, new), before.local_experts(layer, old)))
                for old in range(before.ep_size)
            ]
            for new in range(before.ep_size)
        ]
    )
    same_size = after.slots_per_rank[:, None] == before.slots_per_rank
    overlap = np.where(same_size, overlap, -(10**6))
    of_nodes = np.array(
        [
            [best_sum(overlap[i * size : (i + 1) * size, j * size : (j + 1) * size]) for j in range(nodes)]
            for i in range(nodes)
        ]
    )
    return best_sum(of_nodes)


def best_sum(gain: NDArray[Any]) -> int:
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return int(gain[rows, columns].sum())


@pytest.mark.parametrize(
    "problem",
    [
        # No copies, or a gap that cannot be closed: such layers are planned anew.
        Problem(60, 12, 60, "random", 1, layers=16),
        Problem(24, 24, 48, "zipf", 2, layers=16),
        Problem(60, 12, 62, "lognormal", 3, layers=16),
        Problem(48, 16, 64, "lognormal", 4, layers=16, groups=8, nodes=4),
    ],
)
def test_a_plan_anew_has_the_best_names(problem: Problem) -> None:
    before = problem.plan(problem.load()).placement
    load = problem.load(salt=1)
    result, anew = problem.plan(load, current=before), problem.plan(load).placement
    assert result.moves is not None
    seen = renamed = 0
    for layer in range(problem.layers):
        ranks = [result.placement.local_experts(layer, rank) for rank in range(problem.ranks)]
        fresh = [anew.local_experts(layer, rank) for rank in range(problem.ranks)]
        if sorted(sorted(rank.tolist()) for rank in ranks) != sorted(sorted(rank.tolist()) for rank in fresh):
            continue
        seen += 1
        kept = problem.slots - int(result.moves.fetched[layer].sum())
        assert kept == kept_by_best_names(before, result.placement, layer, problem.nodes)
        renamed += any(sorted(a) != sorted(b) for a, b in zip(ranks, fresh, strict=True))
    assert seen >= 4
    assert renamed >= 4


@pytest.mark.parametrize("max_moves", [0, 5, None])
def test_many_more_ranks_are_planned_without_weighing_every_step(max_moves: int | None) -> None:
    rng = np.random.default_rng(0)
    load = rng.lognormal(size=(1, 256))
    before = plan(load, ep_size=32, num_physical_experts=2048).placement
    result = rescale(before, load, ep_size=40, max_moves=max_moves)
    assert result.moves is not None
    assert result.moves.fetched.sum() <= 40 * 64 - 2048 + (max_moves if max_moves is not None else 2**31)
    assert result.balancedness[0] >= 0.997
    assert (rank_load(result.placement, load) >= 0).all()
