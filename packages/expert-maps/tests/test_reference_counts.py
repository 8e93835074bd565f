# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The first solution: counts and packing, each compiled part against its twin."""

from __future__ import annotations

from itertools import product

import numpy as np
from reference_cases import KINDS, Case, cases, draw, run_part

from expert_maps.reference.counts import replicate
from expert_maps.reference.layer import Layer, heaviest_first
from expert_maps.reference.packing import pack


def test_counts_are_the_twins() -> None:
    for case in cases(3000, 1):
        layer = Layer(case.weight, case.capacity)
        found, _ = run_part("replicate", layer)
        assert found.count == replicate(case.weight, layer.num_ranks, layer.num_slots), case


def test_many_copies_given_at_once_are_the_same() -> None:
    for seed in range(200):
        rng = np.random.default_rng([2, seed])
        experts, ranks = int(rng.integers(5, 60)), int(rng.integers(5, 40))
        slots = int(rng.integers(-(-experts // ranks), experts + 1))
        weight = draw(KINDS[seed % len(KINDS)], experts, rng).tolist()
        found, _ = run_part("replicate", Layer(weight, [slots] * ranks))
        assert found.count == replicate(weight, ranks, slots * ranks), (seed, experts, ranks, slots)


def test_no_other_counts_have_a_smaller_largest_share() -> None:
    for case in cases(300, 3, experts=5, ranks=4):
        ranks, weight = len(case.capacity), np.array(case.weight)
        count = replicate(case.weight, ranks, case.slots)
        every = np.array(list(product(range(1, ranks + 1), repeat=len(weight))))
        every = every[every.sum(axis=1) == case.slots]
        assert (weight / count).max() == (weight / every).max(axis=1).min(), case


def _packed(case: Case) -> tuple[Layer, Layer]:
    layer = case.layer()
    found, _ = run_part("pack", layer)
    pack(layer)
    return layer, found


def test_packing_is_the_twins() -> None:
    for case in cases(3000, 4):
        layer, found = _packed(case)
        assert (found.slots, found.load, found.order) == (layer.slots, layer.load, layer.order), case


def test_packing_on_many_ranks_is_the_twins() -> None:
    for seed in range(60):
        rng = np.random.default_rng([5, seed])
        experts, ranks = int(rng.integers(20, 150)), int(rng.integers(60, 100))
        least = -(-experts // ranks)
        capacity = rng.integers(least, least + 3, size=ranks).tolist()
        weight = draw(KINDS[seed % len(KINDS)], experts, rng).tolist()
        layer, found = _packed(Case(weight, capacity, seed, rng))
        assert (found.slots, found.load, found.order) == (layer.slots, layer.load, layer.order), seed


def test_a_packing_is_a_placement() -> None:
    for case in cases(500, 6):
        layer, _ = _packed(case)
        assert [len(slots) for slots in layer.slots] == case.capacity
        assert all(len(set(slots)) == len(slots) for slots in layer.slots)
        assert {expert for slots in layer.slots for expert in slots} == set(range(layer.num_experts))
        for expert, holders in enumerate(layer.holders):
            assert sorted(holders) == [r for r, slots in enumerate(layer.slots) if expert in slots]


def test_what_24_digits_do_not_tell_apart_keeps_its_order() -> None:
    assert heaviest_first([1.0, 1.0 + 1e-9, 2.0, 0.0]) == [2, 0, 1, 3]
    assert heaviest_first([0.0, 0.0]) == [0, 1]
