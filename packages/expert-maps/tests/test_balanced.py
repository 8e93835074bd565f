# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `balanced` promises of every plan: a placement, a lower bound, the same answer for the same input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from balanced_cases import Problem, problems, realistic_load
from hypothesis import given, settings

from expert_maps import LayoutError, LoadError, plan, rank_load
from expert_maps.policies import DEFAULT_TOLERANCE

REALISTIC = ((256, 288, 32), (256, 320, 64), (256, 288, 72), (64, 80, 16), (128, 160, 32), (384, 416, 32))
SLACK = 1 + 1e-9


@settings(deadline=None)
@given(problems())
def test_every_plan_is_a_placement_and_proves_its_bound(problem: Problem) -> None:
    load = problem.load()
    result = problem.plan(load)
    placement = result.placement
    for layer in range(problem.layers):
        seen: set[int] = set()
        for rank in range(problem.ranks):
            held = placement.local_experts(layer, rank).tolist()
            assert len(held) == len(set(held)), "an expert twice on a rank"
            seen |= set(held)
        assert seen == set(range(problem.experts))
    assert placement.replica_count.max() <= problem.ranks
    assert placement.slots_per_rank.sum() == problem.slots
    assert np.ptp(placement.slots_per_rank) <= 1
    assert (np.diff(placement.slots_per_rank) <= 0).all(), "the first ranks have one more"
    np.testing.assert_array_equal(result.rank_load, rank_load(placement, load))
    peak, mean = result.rank_load.max(axis=1), result.rank_load.mean(axis=1)
    assert np.isfinite(result.lower_bound).all()
    assert (result.lower_bound <= peak * SLACK).all()
    assert (result.lower_bound * SLACK >= mean).all()
    np.testing.assert_array_equal(result.max_rank_load, peak)
    wanted = np.divide(peak, result.lower_bound, out=np.ones_like(peak), where=result.lower_bound > 0) - 1
    np.testing.assert_allclose(result.gap, np.maximum(wanted, 0), rtol=0, atol=1e-12)


@settings(deadline=None)
@given(problems())
def test_the_same_input_gives_the_same_plan_and_layers_do_not_see_each_other(problem: Problem) -> None:
    load = problem.load()
    result = problem.plan(load)
    again = problem.plan(load.copy(order="C"))
    assert again.placement == result.placement
    np.testing.assert_array_equal(again.lower_bound, result.lower_bound)
    for layer in range(problem.layers):
        alone = problem.plan(load[layer : layer + 1])
        np.testing.assert_array_equal(
            alone.placement.physical_to_logical[0], result.placement.physical_to_logical[layer]
        )
        assert alone.lower_bound[0] == result.lower_bound[layer]


@settings(deadline=None, max_examples=50)
@given(problems(("lognormal", "zipf", "ties", "one_huge")))
def test_the_unit_of_the_load_does_not_matter(problem: Problem) -> None:
    load = problem.load()
    result = problem.plan(load)
    for factor in (0.5, 2.0**40, 2.0**-90):
        scaled = problem.plan(load * factor)
        assert scaled.placement == result.placement
        np.testing.assert_array_equal(scaled.lower_bound, result.lower_bound * factor)


def test_blocks_of_layers_make_no_difference() -> None:
    load = realistic_load(150, 32)
    whole = plan(load, num_physical_experts=40, ep_size=8)
    for layer in (0, 63, 64, 127, 128, 149):
        alone = plan(load[layer : layer + 1], num_physical_experts=40, ep_size=8)
        np.testing.assert_array_equal(
            alone.placement.physical_to_logical[0], whole.placement.physical_to_logical[layer]
        )
        assert alone.lower_bound[0] == whole.lower_bound[layer]


@pytest.mark.parametrize(("experts", "slots", "ranks"), REALISTIC)
def test_realistic_loads_are_certified_and_no_worse_than_deepseek(
    experts: int, slots: int, ranks: int
) -> None:
    load = realistic_load(8, experts)
    result = plan(load, num_physical_experts=slots, ep_size=ranks)
    peer = plan(load, num_physical_experts=slots, ep_size=ranks, policy="deepseek")
    assert result.gap.mean() <= 0.001
    assert (result.max_rank_load <= peer.max_rank_load * (1 + DEFAULT_TOLERANCE)).all()
    assert result.gap.mean() < peer.gap.mean()


@settings(deadline=None)
@given(problems(("random", "lognormal", "zipf", "ties", "one_huge")))
def test_small_cases_are_no_worse_than_deepseek_by_more_than_a_few_percent(problem: Problem) -> None:
    even = Problem(
        problem.experts,
        problem.ranks,
        max(problem.slots // problem.ranks, -(-problem.experts // problem.ranks)) * problem.ranks,
        problem.kind,
        problem.seed,
    )
    load = even.load()
    peer = even.plan(load, policy="deepseek")
    assert (even.plan(load).max_rank_load <= peer.max_rank_load * 1.01).all()


@pytest.mark.parametrize("tolerance", [0.05, 0.01, DEFAULT_TOLERANCE, 1e-4])
def test_a_tolerance_that_can_be_reached_is_reached(tolerance: float) -> None:
    load = realistic_load(6, 256, seed=1)
    result = plan(load, num_physical_experts=288, ep_size=32, tolerance=tolerance)
    assert (result.gap <= tolerance).all()


def test_a_tighter_tolerance_is_worth_its_time() -> None:
    load = realistic_load(8, 256, seed=2)
    gaps = [
        plan(load, num_physical_experts=288, ep_size=32, tolerance=tolerance).gap.mean()
        for tolerance in (0.05, 0.001, 1e-5)
    ]
    assert gaps[0] > gaps[1] > gaps[2]


def test_large_problems_are_restarted_only_with_a_tolerance_below_the_default() -> None:
    load = np.random.default_rng(0).lognormal(size=(10, 256))  # hard to level: four slots a rank
    usual, tight = (
        plan(load, num_physical_experts=288, ep_size=72, tolerance=tolerance) for tolerance in (None, 1e-6)
    )
    assert tight.max_rank_load.sum() < usual.max_rank_load.sum()
    same = plan(load, num_physical_experts=288, ep_size=72, tolerance=DEFAULT_TOLERANCE)
    assert same.placement == usual.placement


def test_a_single_expert_is_spread_over_all_ranks() -> None:
    load = np.zeros((3, 64))
    load[[0, 1, 2], [0, 17, 63]] = 1000
    result = plan(load, num_physical_experts=72, ep_size=8)
    assert result.balancedness.tolist() == [1, 1, 1]
    assert result.placement.replica_count[[0, 1, 2], [0, 17, 63]].tolist() == [8, 8, 8]
    assert result.gap.tolist() == [0, 0, 0]


@settings(deadline=None)
@given(problems(("zero",)))
def test_without_load_the_copies_are_spread_evenly(problem: Problem) -> None:
    result = problem.plan(problem.load())
    assert np.ptp(result.placement.replica_count) <= 1
    assert (result.balancedness == 1).all()
    assert (result.lower_bound == 0).all()
    assert (result.gap == 0).all()


def test_experts_at_their_largest_number_of_copies_get_no_more() -> None:
    # 136 slots of 144: nearly every expert is on every rank, and 118 further copies are dealt at once.
    load = np.array([[0, 2, 0, 2, 2, 1, 0, 2, 1, 0, 2, 2, 1, 1, 0, 1, 0, 2]])
    result = plan(load, num_physical_experts=136, ep_size=8)
    assert result.placement.replica_count.max() == 8


def test_uneven_slots_are_planned_where_asked() -> None:
    load = realistic_load(4, 32)
    result = plan(load, num_physical_experts=38, ep_size=8, allow_uneven=True)
    assert result.placement.slots_per_rank.tolist() == [5] * 6 + [4] * 2
    assert result.gap.max() <= 0.05
    with pytest.raises(LayoutError, match=r"multiple of ep_size 8, the nearest: 32 and 40 \(or allow_uneven"):
        plan(load, num_physical_experts=38, ep_size=8)
    even = plan(load, num_physical_experts=40, ep_size=8, allow_uneven=True)
    assert even.placement == plan(load, num_physical_experts=40, ep_size=8).placement


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e31])
@pytest.mark.parametrize("steps", [False, True])
def test_a_bad_value_is_named_with_its_layer_and_expert(value: float, steps: bool) -> None:
    load = np.ones((3, 2, 8))
    load[2, 1, 5] = value
    where = "step 2, layer 1, expert 5" if steps else "layer 1, expert 5"
    with pytest.raises(LoadError, match=rf"load at {where} is .+; expected a number from 0 to 1e\+30"):
        plan(load if steps else load[2], num_physical_experts=8, ep_size=4)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (np.ones(8), r"load has shape \[8\]"),
        (np.ones((1, 1, 1, 8)), r"load has shape \[1, 1, 1, 8\]"),
        (np.ones((0, 8)), r"load has shape \[0, 8\]"),
        ([[1, 2], [3]], "load is ragged"),
        ([["a"]], "load has 'a'"),
        ([[True]], "load has dtype bool"),
    ],
)
def test_a_load_of_another_shape_or_type_is_refused(load: object, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        plan(load, num_physical_experts=8, ep_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("tolerance", [0, -0.1, float("nan"), float("inf"), "tight", True])
def test_a_tolerance_that_is_no_positive_number_is_refused(tolerance: object) -> None:
    with pytest.raises(LayoutError, match="tolerance is"):
        plan(np.ones((1, 8)), num_physical_experts=8, ep_size=4, tolerance=tolerance)  # type: ignore[arg-type]


def test_the_first_call_compiles_nothing() -> None:
    code = (
        "import sys, numpy, expert_maps\n"
        "started = []\n"
        "watched = {'subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.fork', 'os.exec'}\n"
        "sys.addaudithook(lambda event, _: event in watched and started.append(event))\n"
        "expert_maps.plan(numpy.ones((1, 8)), num_physical_experts=8, ep_size=4)\n"
        "print(*started, *sorted({'numba', 'llvmlite', 'torch', 'scipy'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []
