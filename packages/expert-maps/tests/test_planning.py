# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

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
    plan,
    rank_load,
    read_load,
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
