# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Two slots a rank: the search for counts and its bound, each compiled part against its twin and against all counts."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from reference_cases import cases, run_part

from expert_maps.reference.bounds import mean_bound, replica_bound
from expert_maps.reference.two_slot_bound import choose_bin, two_slot_bound
from expert_maps.reference.two_slots import BINS, fold, search_counts, step

if TYPE_CHECKING:
    from expert_maps.reference.layer import Layer


def coolest_pairing(layer: Layer) -> float:
    """Return the least hottest pair over all counts, the copies folded: what no placement is below."""
    weight = np.array(layer.weight)
    every = np.array(list(product(range(1, layer.num_ranks + 1), repeat=layer.num_experts)))
    best = np.inf
    for count in every[every.sum(axis=1) == layer.num_slots]:
        sizes = np.sort(np.repeat(weight / count, count))
        best = min(best, float((sizes + sizes[::-1]).max()))
    return best


@pytest.mark.parametrize("tolerance", [4e-4, 0.01, 0.002])
def test_the_search_for_counts_is_the_twins(tolerance: float) -> None:
    changed = 0
    for case in cases(250, 21, two=True, experts=24, ranks=12):
        layer = case.layer()
        bound = replica_bound(layer, mean_bound(layer))
        if not bound:
            continue
        before, folded = list(layer.count), fold(layer)
        found, _ = run_part("search_counts", layer, low=bound, tolerance=tolerance)
        search_counts(layer, bound, tolerance)
        assert found.count == layer.count, case
        assert fold(layer) <= folded
        changed += layer.count != before
    assert changed > 40


def test_the_search_reaches_the_best_counts_or_is_near() -> None:
    best = reached = 0
    for case in cases(400, 22, two=True, experts=6, ranks=4):
        layer = case.layer()
        search_counts(layer, max(mean_bound(layer), 1e-9), 1e-4)
        coolest = coolest_pairing(layer)
        assert fold(layer) >= coolest * (1 - 1e-9)
        best += fold(layer) <= coolest * 1.001
        reached += 1
    assert best > 0.9 * reached


@pytest.mark.parametrize("tolerance", [4e-4, 1e-9])
def test_the_bound_is_the_twins(tolerance: float) -> None:
    raised = 0
    for case in cases(130, 23, two=True, experts=24, ranks=12):
        layer = case.layer()
        low, high = mean_bound(layer), fold(layer)
        if not low:
            continue
        _, found = run_part("two_slot_bound", layer, low=low, high=high, tolerance=tolerance)
        expected = two_slot_bound(layer, low, high, tolerance)
        assert found == pytest.approx(expected, rel=1e-12), case
        raised += found > low * (1 + 1e-9)
    assert raised > 15


def test_the_bound_is_below_all_counts_and_tight_for_most() -> None:
    tight = number = 0
    for case in cases(400, 24, two=True, experts=6, ranks=4):
        layer = case.layer()
        low, coolest = mean_bound(layer), coolest_pairing(layer)
        if not low:
            continue
        _, found = run_part("two_slot_bound", layer, low=low, high=fold(layer), tolerance=1e-9)
        assert low <= found <= coolest * (1 + 1e-9), case
        if coolest > low * 1.02:
            number += 1
            tight += found > low + 0.5 * (coolest - low)
    assert number > 20
    assert tight > 0.6 * number


def test_more_copies_than_are_looked_at_one_by_one_are_not_forgotten() -> None:
    # One expert needs more than 8 copies: without the tail it has no count, and anything would be impossible.
    for case in cases(40, 25, two=True, experts=10, ranks=24):
        layer = case.layer()
        layer.weight[0] = 30 * max(sum(layer.weight), 1.0)
        low, high = mean_bound(layer), fold(layer)
        _, found = run_part("two_slot_bound", layer, low=low, high=2 * high, tolerance=1e-9)
        search_counts(layer, low, 1e-4)
        assert found <= fold(layer) * (1 + 1e-9), case


def test_bins_are_rounded_to_the_safe_side() -> None:
    rng = np.random.default_rng(26)
    for load, target in rng.random((300, 2)).tolist():
        for copies in (1, 2, 5):
            size = load / copies
            if size > target:
                continue
            place = min(size, target - size) * 2 * BINS / target
            tried, proved = step(load, copies, target), choose_bin(load, copies, target)
            assert (tried[1] > 0) == (proved.value > 0) == (size <= target / 2)
            # The search must not call good what does not fit, nor the bound impossible what does.
            order = (proved.bin, place, tried[0]) if size <= target / 2 else (tried[0], place, proved.bin)
            assert order[0] <= order[1] + 1e-9
            assert order[1] <= order[2] + 1e-9
