# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Plans that start from the placement in use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from balanced_cases import Problem, grouped_problems, nodes_of_group, problems, realistic_load
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_maps import LayoutError, Placement, balancedness, generate_placement, moves, plan, rank_load
from expert_maps.policies import DEFAULT_TOLERANCE

KINDS = ("random", "lognormal", "zipf", "ties", "one_huge", "zero", "one_hot")
COUNTS: dict[str, Any] = {"num_physical_experts": 288, "ep_size": 32}
# Seed, ranks, slots of a rank, experts and budget.
HEATING = [
    (2172, 4, 3, 6, 1),
    (5575, 8, 3, 19, 2),
    (12432, 4, 3, 6, 1),
    (12865, 8, 3, 13, 2),
    (17443, 8, 2, 11, 2),
]
NODES: dict[str, Any] = {**COUNTS, "num_groups": 8, "num_nodes": 4}


def shifted(load: np.ndarray[Any, Any], seed: int, sigma: float = 0.2) -> np.ndarray[Any, Any]:
    return load * np.random.default_rng(seed).lognormal(sigma=sigma, size=load.shape)


@settings(deadline=None)
@given(
    st.one_of(problems(KINDS), grouped_problems(KINDS)),
    st.integers(0, 12),
    st.sampled_from((None, 0.01, 1e-6)),
)
def test_the_budget_is_kept_and_the_plan_never_worse(
    problem: Problem, budget: int, tolerance: float | None
) -> None:
    before = problem.plan(problem.load()).placement
    load = problem.load(salt=1)
    result = problem.plan(load, current=before, max_moves=budget, tolerance=tolerance)
    moved = result.moves
    assert moved is not None
    assert (moved.changed.sum(axis=1) <= budget).all()
    wanted = moves(before, result.placement)
    np.testing.assert_array_equal(moved.changed, wanted.changed)
    np.testing.assert_array_equal(moved.fetched, wanted.fetched)
    # What stays on its rank keeps its slot: so every changed slot holds an expert that was not there.
    np.testing.assert_array_equal(moved.changed, moved.fetched)
    assert (result.max_rank_load <= rank_load(before, load).max(axis=1) * (1 + 1e-12)).all()
    assert (result.lower_bound <= result.max_rank_load * (1 + 1e-9)).all()
    if not budget:
        assert result.placement == before
    again = problem.plan(load, current=before, max_moves=budget, tolerance=tolerance)
    assert again.placement == result.placement


@pytest.mark.parametrize(("seed", "ranks", "slots", "experts", "budget"), HEATING)
def test_steps_that_heat_one_rank_to_cool_others_are_not_taken(
    seed: int, ranks: int, slots: int, experts: int, budget: int
) -> None:
    # Found among thousands: each step made the sum of what is above the target less, and a rank hotter than any had been.
    draw = np.random.default_rng(seed)
    load = draw.lognormal(0, 1.5, (1, experts))
    later = load * draw.lognormal(0, 0.7, (1, experts))
    counts: dict[str, Any] = {"ep_size": ranks, "num_physical_experts": ranks * slots}
    before = plan(load, **counts, tolerance=0.05).placement
    result = plan(later, **counts, current=before, max_moves=budget)
    assert result.max_rank_load[0] <= rank_load(before, later).max() * (1 + 1e-12)


@settings(deadline=None)
@given(st.one_of(problems(KINDS), grouped_problems(KINDS)))
def test_without_a_budget_what_stays_keeps_its_slot_too(problem: Problem) -> None:
    before = problem.plan(problem.load()).placement
    load = problem.load(salt=1)
    result = problem.plan(load, current=before)
    assert result.moves is not None
    np.testing.assert_array_equal(result.moves.changed, result.moves.fetched)
    assert (result.max_rank_load <= rank_load(before, load).max(axis=1) * (1 + 1e-12)).all()


@settings(deadline=None, max_examples=40)
@given(grouped_problems(("lognormal", "random")), st.sampled_from((None, 2, 6)))
def test_groups_stay_on_their_nodes(problem: Problem, budget: int | None) -> None:
    before = problem.plan(problem.load()).placement
    result = problem.plan(problem.load(salt=1), current=before, max_moves=budget)
    for layer in range(problem.layers):
        for group in range(problem.groups):
            home = nodes_of_group(result.placement, layer, group, problem.groups, problem.nodes)
            assert len(home) == 1
            if budget == 2 and problem.experts // problem.groups > 2:  # too few to carry a group elsewhere
                assert home == nodes_of_group(before, layer, group, problem.groups, problem.nodes)


@pytest.mark.parametrize("counts", [COUNTS, NODES])
def test_nothing_moves_where_nothing_needs_to(counts: dict[str, Any]) -> None:
    load = realistic_load(4, 256)
    first = plan(load, **counts)
    for budget in (None, 0, 30):
        again = plan(load, **counts, current=first.placement, max_moves=budget)
        assert again.placement == first.placement
        assert again.moves is not None
        assert not again.moves.changed.any()
        assert (again.gap <= DEFAULT_TOLERANCE).all()
    assert first.moves is None


def test_a_real_shift_is_levelled_with_an_eighth_of_the_slots() -> None:
    load = realistic_load(58, 256)
    before = plan(load, **COUNTS).placement
    later = shifted(load, seed=1)
    assert balancedness(before, later).mean() < 0.9  # what keeping it would give
    result = plan(later, **COUNTS, current=before, max_moves=34)
    assert result.moves is not None
    assert result.moves.changed.mean() <= 0.12
    assert result.balancedness.mean() >= 0.995
    assert result.moves.bytes(1000) == 1000 * result.moves.fetched.sum()


@pytest.mark.parametrize("counts", [COUNTS, NODES])
def test_without_a_budget_it_is_certified_with_fewer_moves_than_from_scratch(counts: dict[str, Any]) -> None:
    load = realistic_load(6, 256)
    before = plan(load, **counts).placement
    later = shifted(load, seed=2)
    result, anew = plan(later, **counts, current=before), plan(later, **counts)
    assert result.moves is not None
    if counts is COUNTS:
        assert (result.gap <= DEFAULT_TOLERANCE).all()
    assert result.gap.mean() <= max(anew.gap.mean(), DEFAULT_TOLERANCE)
    assert result.moves.fetched.sum() < 0.5 * moves(before, anew.placement).fetched.sum()


def test_a_plan_anew_takes_the_names_under_which_most_is_there() -> None:
    # Equal loads reversed over ranks: nothing is gained by moving, only the names differ.
    load = realistic_load(3, 64)
    planned = plan(load, num_physical_experts=64, ep_size=8).placement
    reversed_ranks = Placement(
        planned.physical_to_logical.reshape(3, 8, 8)[:, ::-1].reshape(3, 64), 8, num_logical_experts=64
    )
    result = plan(load, num_physical_experts=64, ep_size=8, current=reversed_ranks)
    assert result.moves is not None
    assert not result.moves.changed.any()


def test_blocks_of_layers_make_no_difference() -> None:
    load = realistic_load(70, 32)
    before = plan(load, num_physical_experts=40, ep_size=8).placement
    later = shifted(load, seed=3)
    whole = plan(later, num_physical_experts=40, ep_size=8, current=before, max_moves=4)
    for layer in (0, 63, 64, 69):
        only = Placement(before.physical_to_logical[layer : layer + 1], 8, num_logical_experts=32)
        alone = plan(later[layer : layer + 1], num_physical_experts=40, ep_size=8, current=only, max_moves=4)
        np.testing.assert_array_equal(
            alone.placement.physical_to_logical[0], whole.placement.physical_to_logical[layer]
        )


def test_uneven_slots_stay_uneven() -> None:
    load = realistic_load(3, 32)
    counts: dict[str, Any] = {"num_physical_experts": 38, "ep_size": 8, "allow_uneven": True}
    before = plan(load, **counts).placement
    result = plan(shifted(load, seed=4), **counts, current=before, max_moves=3)
    assert result.placement.slots_per_rank.tolist() == before.slots_per_rank.tolist()
    assert result.moves is not None
    assert (result.moves.changed.sum(axis=1) <= 3).all()


def test_any_valid_placement_can_be_the_present_one() -> None:
    load = realistic_load(3, 64)
    linear = generate_placement("linear", num_experts=64, ep_size=16, num_layers=3)
    result = plan(load, num_physical_experts=64, ep_size=16, current=linear, max_moves=16)
    assert (result.balancedness > balancedness(linear, load)).all()


def test_second_copies_on_a_rank_go_where_there_is_no_budget() -> None:
    twice = Placement([[0, 0, 1, 2]], 2, allow_duplicates=True)
    result = plan([[4.0, 2.0, 2.0]], num_physical_experts=4, ep_size=2, current=twice)
    assert result.placement.replica_count.max() <= 2
    with pytest.raises(LayoutError, match="current has an expert twice on rank 0 in layer 0"):
        plan([[4.0, 2.0, 2.0]], num_physical_experts=4, ep_size=2, current=twice, max_moves=4)


def test_a_group_on_several_nodes_needs_a_plan_anew() -> None:
    load = realistic_load(2, 16)
    counts: dict[str, Any] = {"num_physical_experts": 16, "ep_size": 4, "num_groups": 4, "num_nodes": 2}
    good = plan(load, **counts).placement.physical_to_logical
    mixed = Placement(np.stack([good[0], np.roll(good[1], 1)]), 4, num_logical_experts=16)
    message = (
        r"^current has an expert group on several nodes in layer 1; expected each of the 4 groups on one of 2 nodes, "
        "or no max_moves$"
    )
    with pytest.raises(LayoutError, match=message):
        plan(load, **counts, current=mixed, max_moves=2)
    result = plan(load, **counts, current=mixed)
    for group in range(4):
        assert len(nodes_of_group(result.placement, 1, group, 4, 2)) == 1


PRESENT = generate_placement("linear", num_experts=16, ep_size=4, num_layers=2)
UNEVEN = Placement([list(range(16))] * 2, 4, slots_per_rank=[5, 3, 4, 4], allow_uneven=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load": np.ones((3, 16))}, "num_layers of current is 2; expected 3, as planned"),
        ({"load": np.ones((2, 15))}, "num_logical_experts of current is 16; expected 15"),
        ({"ep_size": 8}, r"ep_size of current is 4; expected 8, as planned \(`rescale` goes"),
        ({"num_physical_experts": 20}, "num_physical_experts of current is 16; expected 20"),
        ({"current": UNEVEN}, r"slots_per_rank of current are \[5, 3, 4, 4\]; expected \[4, 4, 4, 4\]"),
        ({"current": None, "max_moves": 3}, "max_moves is 3; expected it with current"),
        ({"max_moves": -1}, "max_moves is -1"),
        ({"max_moves": 1.5}, "max_moves is 1.5; expected an integer"),
        (
            {"policy": "deepseek"},
            "current is given; expected none with policy 'deepseek': only 'balanced' has it",
        ),
        (
            {"policy": "deepseek_global", "current": None, "max_moves": 3},
            "max_moves is 3; expected none with",
        ),
        ({"policy": "deepseek", "current": None, "tolerance": 0.1}, "tolerance is 0.1; expected none with"),
        (
            {"policy": "deepseek", "current": None, "num_physical_experts": 18, "allow_uneven": True},
            "num_physical_experts is 18; expected a multiple of ep_size 4 with policy 'deepseek'",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"num_physical_experts": 16, "ep_size": 4, "current": PRESENT} | options
    load = arguments.pop("load", np.ones((2, 16)))
    with pytest.raises(LayoutError, match=message):
        plan(load, **arguments)
