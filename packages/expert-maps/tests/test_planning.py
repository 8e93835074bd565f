# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import LOAD_KINDS, Counts, counts, loads

from expert_maps import (
    POLICY_NAMES,
    ExpertLoad,
    LayoutError,
    LoadError,
    balancedness,
    generate_placement,
    least_redundancy,
    plan,
    rank_load,
    read_load,
    rescale,
)

RECORDED = Path(__file__).parents[4] / "shared" / "data" / "loads"


@given(counts(), st.integers(0, 2**32 - 1), st.sampled_from(LOAD_KINDS), st.sampled_from(POLICY_NAMES))
def test_every_policy_keeps_the_contract(drawn: Counts, seed: int, kind: str, policy: str) -> None:
    load = loads(drawn, seed, kind)
    result = plan(load, num_physical_experts=drawn.num_physical, ep_size=drawn.ep_size, policy=policy)
    # Placement has checked that every expert is placed and none stands twice on a rank.
    assert result.placement.num_physical_experts == drawn.num_physical
    assert result.placement.num_logical_experts == drawn.num_experts
    assert result.placement.replica_count.max() <= drawn.ep_size
    assert result.policy == policy
    assert result.balancedness.shape == (drawn.num_layers,)
    assert ((result.balancedness > 0) & (result.balancedness <= 1 + 1e-12)).all()
    np.testing.assert_array_equal(result.balancedness, balancedness(result.placement, load))
    np.testing.assert_array_equal(result.rank_load, rank_load(result.placement, load))
    np.testing.assert_array_equal(result.max_rank_load, result.rank_load.max(axis=1))
    np.testing.assert_allclose(result.peak_to_mean * result.balancedness, 1)
    again = plan(load, num_physical_experts=drawn.num_physical, ep_size=drawn.ep_size, policy=policy)
    assert again.placement == result.placement


def test_balanced_is_the_default_policy() -> None:
    load = np.random.default_rng(0).random((2, 16))
    usual = plan(load, num_physical_experts=20, ep_size=4)
    assert usual.policy == "balanced"
    assert usual.placement == plan(load, num_physical_experts=20, ep_size=4, policy="balanced").placement


@pytest.mark.parametrize("policy", [name for name in POLICY_NAMES if name != "balanced"])
def test_steps_are_summed_by_policies_that_know_no_time(policy: str) -> None:
    steps = np.random.default_rng(0).random((7, 2, 16))
    one = plan(steps, num_physical_experts=20, ep_size=4, policy=policy)
    summed = plan(steps.sum(axis=0), num_physical_experts=20, ep_size=4, policy=policy)
    assert one.placement == summed.placement
    assert (
        one.placement == plan(ExpertLoad(steps), num_physical_experts=20, ep_size=4, policy=policy).placement
    )
    np.testing.assert_allclose(one.rank_load, summed.rank_load)
    # They prove nothing: the bound is the mean.
    np.testing.assert_array_equal(one.lower_bound, one.rank_load.mean(axis=1))
    np.testing.assert_allclose(one.gap, one.peak_to_mean - 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", ["balanced", "deepseek"])
def test_layers_are_independent_and_progress_is_told(policy: str) -> None:
    load = np.random.default_rng(0).random((150, 16))
    told: list[tuple[int, int]] = []
    result = plan(
        load,
        num_physical_experts=20,
        ep_size=4,
        policy=policy,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (150, 150)
    assert told == sorted(told)
    for layer in (0, 77, 149):
        alone = plan(load[layer : layer + 1], num_physical_experts=20, ep_size=4, policy=policy)
        np.testing.assert_array_equal(
            alone.placement.physical_to_logical[0], result.placement.physical_to_logical[layer]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "best"}, "policy is 'best'; expected one of balanced, deepseek, "),
        ({"num_physical_experts": 15}, "num_physical_experts is 15; expected 16 … 64"),
        ({"num_physical_experts": 68}, "num_physical_experts is 68; expected 16 … 64"),
        ({"num_physical_experts": 21}, r"multiple of ep_size 4, the nearest: 20 and 24 \(or allow_uneven"),
        ({"num_physical_experts": 20.0}, "num_physical_experts is 20.0; expected an integer"),
        ({"ep_size": 0}, "ep_size is 0"),
        ({"num_groups": 3}, "num_groups is 3; expected a divisor of the 16 experts"),
        ({"num_groups": 0}, "num_groups is 0"),
        ({"num_nodes": 3}, "num_nodes is 3; expected a divisor of ep_size 4"),
    ],
)
def test_impossible_counts_are_named(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"num_physical_experts": 20, "ep_size": 4} | options
    with pytest.raises(LayoutError, match=message):
        plan(np.ones((2, 16)), **arguments)  # type: ignore[arg-type]


# Redundancy has one meaning, and two names


def test_either_name_of_redundancy_will_do_and_both_if_they_agree() -> None:
    load = np.random.default_rng(0).random((2, 16))
    wanted = plan(load, num_physical_experts=20, ep_size=4)
    assert plan(load, num_redundant_experts=4, ep_size=4) == wanted
    assert plan(load, num_redundant_experts=4, num_physical_experts=20, ep_size=4) == wanted
    ring = generate_placement("ring", num_experts=16, ep_size=4, num_redundant_experts=4)
    assert generate_placement("ring", num_experts=16, ep_size=4, num_physical_experts=20) == ring
    more = rescale(wanted, load, ep_size=6, num_physical_experts=24)
    assert rescale(wanted, load, ep_size=6, num_redundant_experts=8) == more
    with pytest.raises(
        LayoutError,
        match=r"num_redundant_experts is 8 and num_physical_experts 20; expected 16 \+ 8 = 24, or one of them alone",
    ):
        plan(load, num_redundant_experts=8, num_physical_experts=20, ep_size=4)
    for call in (
        lambda: generate_placement(
            num_experts=16, ep_size=4, num_redundant_experts=8, num_physical_experts=20
        ),
        lambda: rescale(wanted, load, num_redundant_experts=8, num_physical_experts=20),
    ):
        with pytest.raises(
            LayoutError, match="num_redundant_experts is 8 and num_physical_experts 20; expected"
        ):
            call()


@pytest.mark.parametrize(
    ("experts", "ranks", "least"), [(16, 4, 0), (17, 4, 3), (3, 8, 5), (1, 1, 0), (60, 16, 4)]
)
def test_without_either_the_least_that_divides_is_planned(experts: int, ranks: int, least: int) -> None:
    assert least_redundancy(experts, ranks) == least
    result = plan(np.random.default_rng(0).random((2, experts)), ep_size=ranks)
    assert result.placement.num_redundant_experts == least
    assert result.placement.is_even
    assert plan(np.ones((2, experts)), ep_size=ranks, num_redundant_experts=least).placement.is_even


def test_without_either_the_placement_in_use_says_it() -> None:
    load = np.random.default_rng(0).random((2, 16))
    before = plan(load, num_physical_experts=24, ep_size=4)
    assert plan(load[::-1], ep_size=4, current=before).placement.num_physical_experts == 24


@pytest.mark.parametrize(
    ("redundant", "message"),
    [
        (
            5,
            r"num_redundant_experts is 5: 16 \+ 5 = 21 slots do not divide by ep_size 4; nearest that work: 4 and 8",
        ),
        (-1, "num_redundant_experts is -1; expected at least 0"),
        (4.0, "num_redundant_experts is 4.0; expected an integer"),
        (2_000_000_000, "num_physical_experts is 2000000016; expected at most"),
    ],
)
def test_redundancy_that_cannot_be_is_named(redundant: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        plan(np.ones((2, 16)), ep_size=4, num_redundant_experts=redundant)


def test_counts_beyond_all_reason_are_refused_at_once() -> None:
    with pytest.raises(LayoutError, match="num_physical_experts is 2000000016; expected at most"):
        generate_placement(num_experts=16, ep_size=4, num_redundant_experts=2_000_000_000)
    with pytest.raises(LayoutError, match="num_physical_experts is 12; expected at least 16"):
        generate_placement(num_experts=16, ep_size=4, num_physical_experts=12)
    with pytest.raises(LayoutError, match="num_physical_experts is 20000000; expected at most"):
        plan(
            np.ones((2, 16)),
            ep_size=4,
            num_physical_experts=20_000_000,
            policy="deepseek",
            allow_duplicates=True,
        )


# Groups and nodes


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_that_do_not_divide_by_the_nodes_are_an_error_that_names_both(groups: int) -> None:
    load = np.random.default_rng(0).random((2, 48))
    counts: dict[str, Any] = {"ep_size": 6, "num_groups": groups, "num_nodes": 3}
    message = f"num_groups is {groups} and num_nodes 3; expected groups that divide by the nodes"
    with pytest.raises(LayoutError, match=message):
        plan(load, **counts)
    before = plan(load, ep_size=6)
    with pytest.raises(LayoutError, match=message):
        rescale(before, load, num_groups=groups, num_nodes=3)
    with pytest.raises(LayoutError, match=f"num_groups is {groups}; expected a multiple of num_nodes 3"):
        plan(load, **counts, policy="deepseek_hierarchical")
    # DeepSeek's own rule: then it plans without them.
    fallen_back = plan(load, **counts, policy="deepseek")
    assert fallen_back.placement == plan(load, ep_size=6, policy="deepseek_global").placement
    assert not fallen_back.keeps_groups
    assert fallen_back.cost_of_groups() == 0


@pytest.mark.parametrize("policy", ["balanced", "deepseek", "deepseek_hierarchical"])
def test_what_groups_on_nodes_cost_is_told(policy: str) -> None:
    load = np.random.default_rng(0).lognormal(sigma=1.5, size=(4, 64))
    grouped = plan(load, ep_size=8, num_redundant_experts=8, num_groups=8, num_nodes=4, policy=policy)
    flat = "deepseek_global" if policy == "deepseek_hierarchical" else policy
    free = plan(load, ep_size=8, num_redundant_experts=8, policy=flat)
    assert grouped.keeps_groups
    assert grouped.without_groups() == free
    assert grouped.cost_of_groups() == pytest.approx(
        grouped.max_rank_load.sum() / free.max_rank_load.sum() - 1
    )
    assert grouped.cost_of_groups() > 0.01
    assert free.without_groups() is free
    assert (free.cost_of_groups(), plan(load, ep_size=8, num_groups=8).cost_of_groups()) == (0, 0)
    idle = plan(np.zeros((1, 64)), ep_size=8, num_groups=8, num_nodes=4, policy=policy)
    assert idle.cost_of_groups() == 0


def test_what_groups_cost_is_told_of_a_plan_from_a_placement() -> None:
    load = np.random.default_rng(0).lognormal(sigma=1.5, size=(3, 64))
    counts: dict[str, Any] = {"num_groups": 8, "num_nodes": 4}
    before = plan(load, ep_size=8, num_redundant_experts=8, **counts)
    later = load[::-1]
    result = plan(later, ep_size=8, current=before, max_moves=4, **counts)
    free = plan(later, ep_size=8, current=before, max_moves=4)
    assert result.without_groups().placement == free.placement
    grown = rescale(before, later, num_redundant_experts=16, **counts)
    assert grown.without_groups().placement == rescale(before, later, num_redundant_experts=16).placement


# A budget of moves


@pytest.mark.parametrize("budget", [0, 3, None])
def test_max_moves_means_the_same_to_plan_and_to_rescale(budget: int | None) -> None:
    load = np.random.default_rng(0).lognormal(sigma=1.5, size=(3, 16))
    before = plan(load, ep_size=4, num_redundant_experts=4)
    planned = plan(load[::-1], ep_size=4, current=before, max_moves=budget)
    rescaled = rescale(before, load[::-1], max_moves=budget)
    assert planned == rescaled
    assert planned.moves is not None
    if budget is not None:
        assert planned.moves.changed.sum(axis=1).max() <= budget


def test_a_bad_load_is_refused_before_anything_else() -> None:
    with pytest.raises(LoadError, match="load at layer 0, expert 1 is nan"):
        plan([[1.0, float("nan")]], num_physical_experts=2, ep_size=2)


def test_recorded_loads_become_better_balanced() -> None:
    if not RECORDED.is_dir():
        pytest.skip("no recorded loads beside the checkout")
    load = read_load(RECORDED / "esft_vanilla_lite_expert_load_w512.npz", "intent")
    before = generate_placement("linear", num_experts=64, ep_size=16, num_layers=26)
    result = plan(load, num_physical_experts=80, ep_size=16)
    assert (result.balancedness > balancedness(before, load)).all()
    assert result.balancedness.mean() > 0.95
