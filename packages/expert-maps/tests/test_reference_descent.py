# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The descent, its restarts and its bounds, each compiled part against its twin."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from reference_cases import Case, cases, run_part

from expert_maps.reference.bounds import mean_bound, replica_bound
from expert_maps.reference.descent import Goal, descend
from expert_maps.reference.kicks import kick_and_descend
from expert_maps.reference.layer import Layer
from expert_maps.reference.packing import pack


def start(case: Case) -> Layer:
    """Return the case packed badly: what is heavy stands together, so that there is much to swap."""
    layer = case.layer()
    pack(layer)
    for _ in range(int(case.rng.integers(0, 8))):
        a, b = case.rng.integers(layer.num_ranks, size=2).tolist()
        if a == b or not layer.slots[a] or not layer.slots[b]:
            continue
        given, taken = layer.slots[a][-1], layer.slots[b][0]
        if given != taken and layer.fits(b, given) and layer.fits(a, taken):
            layer.swap(a, b, given, taken)
    for holders in layer.holders:
        holders.sort()
    layer.sort_ranks()
    return layer


def compare(case: Case, kicks: int = 0) -> None:
    layer = start(case)
    mean = mean_bound(layer)
    goal = {
        "target": mean * float(case.rng.choice([1.0, 1.001, 1.05, 1.5])),
        "least": mean * float(case.rng.choice([1e-12, 1e-6, 0.01])),
        "steps": int(case.rng.choice([1, 3, 300])),
        "recount": int(case.rng.integers(0, 4) > 0),
    }
    found, reached = run_part("descend", layer, kicks=kicks, **goal)
    own = Goal(goal["target"], goal["least"], int(goal["steps"]), bool(goal["recount"]))
    expected = descend(layer, own)
    if not expected and kicks:
        expected = kick_and_descend(layer, own, kicks)
    assert (found.slots, found.load, found.order) == (layer.slots, layer.load, layer.order), (case, goal)
    assert (found.count, bool(reached)) == (layer.count, expected), (case, goal)


def test_the_descent_is_the_twins() -> None:
    for case in cases(2000, 11):
        compare(case)


def test_the_descent_on_larger_problems_is_the_twins() -> None:
    for case in cases(60, 12, experts=48, ranks=12):
        compare(case)


def test_restarts_are_the_twins() -> None:
    for case in cases(300, 13):
        compare(case, kicks=5)


def test_where_a_descent_ends_no_swap_helps() -> None:
    for case in cases(250, 14, experts=10, ranks=5):
        layer = start(case)
        descend(layer, Goal(0.0, 1e-12 * layer.peak, 1000))
        hot = layer.hottest
        for cold, size in product(layer.order[:-1], (1, 2)):
            if size > 1 and layer.widest < 3:
                continue
            for given in combinations(layer.slots[hot], size):
                for taken in combinations(layer.slots[cold], size):
                    kept = set(layer.slots[hot]) - set(given), set(layer.slots[cold]) - set(taken)
                    if kept[0] & set(taken) or kept[1] & set(given):
                        continue
                    change = sum(map(layer.share, given)) - sum(map(layer.share, taken))
                    after = max(layer.load[hot] - change, layer.load[cold] + change)
                    assert after >= layer.peak * (1 - 1e-9), (case, cold, given, taken)


def test_where_a_descent_ends_no_other_split_of_the_copies_helps() -> None:
    for case in cases(250, 15):
        layer = start(case)
        descend(layer, Goal(0.0, 1e-12 * layer.peak, 1000))
        peak = layer.peak
        for rank, slots in enumerate(layer.slots):
            for dropped, added in product(slots, range(layer.num_experts)):
                if layer.count[dropped] < 2 or added in slots:
                    continue
                if layer.hottest not in {rank, *layer.holders[added]}:
                    continue
                trial = Layer(layer.weight, layer.capacity, count=list(layer.count))
                trial.count[dropped] -= 1
                trial.count[added] += 1
                kept = [[e for e in held if (r, e) != (rank, dropped)] for r, held in enumerate(layer.slots)]
                kept[rank].append(added)
                assert max(sum(map(trial.share, held)) for held in kept) >= peak * (1 - 1e-9), case


def test_the_mean_is_the_twins() -> None:
    for case in cases(500, 16):
        assert run_part("mean_bound", case.layer())[1] == mean_bound(case.layer())


@pytest.mark.parametrize("factor", [1.0, 1.05, 0.0])
def test_the_bound_from_single_copies_is_the_twins(factor: float) -> None:
    for case in cases(1500, 17):
        layer = case.layer()
        low = factor * mean_bound(layer)
        assert run_part("replica_bound", layer, low=low)[1] == replica_bound(layer, low), case


def coolest(case: Case) -> float:
    """Return the coolest hottest rank of all placements, by trying all."""
    weight, ranks = np.array(case.weight), len(case.capacity)
    choices = [list(combinations(range(len(weight)), size)) for size in case.capacity]
    best = np.inf
    for placement in product(*choices):
        count = np.bincount([e for held in placement for e in held], minlength=len(weight))
        if count.min() > 0:
            share = weight / count
            best = min(best, max(share[list(held)].sum() for held in placement))
    assert ranks == len(case.capacity)
    return float(best)


def test_bounds_are_below_all_placements() -> None:
    tight = 0
    for case in cases(300, 18, experts=5, ranks=3):
        layer, best = case.layer(), coolest(case)
        _, bound = run_part("replica_bound", layer, low=mean_bound(layer))
        assert bound <= best * (1 + 1e-9), case
        tight += bound >= best * (1 - 1e-6)
    assert tight > 150  # and are no mere formality
