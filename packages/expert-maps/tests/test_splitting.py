# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The split of tokens over copies against linear programmes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from balanced_cases import KINDS, Problem, draw_load, problems, realistic_load
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import placements

from expert_maps import ExpertLoad, ExpertMapsError, LoadError, Placement, plan, rank_load, split_replicas

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps import ReplicaWeights


def level(placement: Placement, layer: int, load: NDArray[np.float64], fixed: dict[int, float]) -> float:
    """Return the coolest hottest rank of all splits, among the ranks that are not fixed to a load."""
    slots, ranks = placement.physical_to_logical[layer], placement.ep_size
    unit = load.sum()
    tokens = np.zeros((len(load), len(slots) + 1))
    tokens[slots, np.arange(len(slots))] = 1
    heat = np.zeros((ranks, len(slots) + 1))
    heat[placement.slot_rank, np.arange(len(slots))] = 1
    limit = np.zeros(ranks)
    for rank in range(ranks):
        if rank in fixed:
            limit[rank] = fixed[rank] / unit + 1e-9
        else:
            heat[rank, -1] = -1
    aim = np.zeros(len(slots) + 1)
    aim[-1] = 1
    found = linprog(aim, A_ub=heat, b_ub=limit, A_eq=tokens, b_eq=load / unit, method="highs")
    assert found.status == 0, found.message
    return float(found.fun) * unit


def most_level(placement: Placement, layer: int, load: NDArray[np.float64]) -> list[float]:
    """Return the rank loads, hottest first, of the lexicographically coolest split.

    By programmes in turn: the hottest rank; then, of the ranks that could stand at that load, each that cannot be
    brought below it is fixed, and the rest is levelled again.
    """
    fixed: dict[int, float] = {}
    while len(fixed) < placement.ep_size:
        top = level(placement, layer, load, fixed)
        free = [rank for rank in range(placement.ep_size) if rank not in fixed]
        stuck = []
        for rank in free:
            # With all others at the top: how cool can this one be?
            others = dict.fromkeys(free, top) | fixed
            del others[rank]
            if level(placement, layer, load, others) >= top - 1e-6 * load.sum():
                stuck.append(rank)
        assert stuck
        fixed |= dict.fromkeys(stuck, top)
    return sorted(fixed.values(), reverse=True)


def check_weights(result: ReplicaWeights, load: NDArray[np.float64]) -> None:
    placement = result.placement
    slots = placement.logical_to_physical
    assert result.weights.shape == slots.shape
    assert (result.weights >= 0).all()
    assert (result.weights[slots < 0] == 0).all()
    np.testing.assert_allclose(result.weights.sum(axis=2), 1, rtol=0, atol=1e-12)
    for layer in range(placement.num_layers):
        carried = np.zeros(placement.ep_size)
        for expert in range(placement.num_logical_experts):
            for index, slot in enumerate(slots[layer, expert]):
                if slot >= 0:
                    share = result.weights[layer, expert, index] * load[layer, expert]
                    carried[placement.slot_rank[slot]] += share
        np.testing.assert_allclose(carried, result.rank_load[layer], rtol=1e-9, atol=1e-12 * load.sum())
    np.testing.assert_allclose(result.max_rank_load, result.lower_bound, rtol=1e-9)
    assert (result.gap <= 1e-9).all()
    assert (result.balancedness <= 1 + 1e-12).all()


@settings(deadline=None, max_examples=60)
@given(placements(), st.integers(0, 2**31), st.sampled_from(("lognormal", "ties", "zipf", "one_hot")))
def test_the_bound_is_the_optimum_of_the_linear_programme(placement: Placement, seed: int, kind: str) -> None:
    load = draw_load(kind, placement.replica_count.shape, seed)
    result = split_replicas(placement, load)
    check_weights(result, load)
    for layer in range(placement.num_layers):
        if load[layer].sum() > 0:
            best = level(placement, layer, load[layer], {})
            assert result.lower_bound[layer] == pytest.approx(best, rel=1e-9)
        else:
            assert result.lower_bound[layer] == 0


@settings(deadline=None)
@given(problems(), st.sampled_from(KINDS))
def test_no_even_split_is_cooler_and_every_kind_of_load_is_split(problem: Problem, kind: str) -> None:
    placement = problem.plan(problem.load()).placement
    load = np.asarray(draw_load(kind, placement.replica_count.shape, problem.seed + 1), dtype=np.float64)
    result = split_replicas(placement, load)
    if kind != "denormal":  # shares of what is itself rounded to a few digits
        check_weights(result, load)
    # The most level split is so in every sense: its k hottest ranks carry no more than those of any other.
    even, best = (
        np.cumsum(-np.sort(-loads, axis=1), axis=1)
        for loads in (rank_load(placement, load), result.rank_load)
    )
    assert (best <= even * (1 + 1e-9)).all()
    again = split_replicas(placement, load)
    np.testing.assert_array_equal(again.weights, result.weights)


@pytest.mark.parametrize("seed", range(6))
def test_the_split_is_the_most_level_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Two copies of most experts on ranks that form no single component.
    slots = [[0, 1, 0, 2, 1, 2, 3, 4, 3, 5, 4, 6]]
    placement = Placement(slots, 6, num_logical_experts=7)
    load = rng.lognormal(sigma=1.5, size=(1, 7))
    result = split_replicas(placement, load)
    wanted = most_level(placement, 0, load[0])
    np.testing.assert_allclose(-np.sort(-result.rank_load[0]), wanted, rtol=0, atol=1e-5 * load.sum())


def test_it_is_worth_it_after_a_shift() -> None:
    load = realistic_load(6, 256)
    placement = plan(load, num_physical_experts=320, ep_size=32).placement
    later = load * np.random.default_rng(0).lognormal(sigma=0.2, size=load.shape)
    result = split_replicas(placement, later)
    check_weights(result, later)
    assert (result.max_rank_load <= rank_load(placement, later).max(axis=1)).all()
    assert result.max_rank_load.sum() < 0.97 * rank_load(placement, later).max(axis=1).sum()


def test_known_splits() -> None:
    placement = Placement([[0, 1, 0, 2]], 2)
    result = split_replicas(placement, [[8, 5, 1]])
    # 14 tokens, 7 a rank: 2 of the first expert's 8 beside the 5, and 6 beside the 1.
    assert result.weights.tolist() == [[[0.25, 0.75], [1, 0], [1, 0]]]
    assert result.rank_load.tolist() == [[7, 7]]
    assert result.lower_bound.tolist() == [7]
    assert result.balancedness.tolist() == [1]
    # Too much for the first rank, whatever the split.
    result = split_replicas(placement, [[8, 50, 1]])
    assert result.weights.tolist() == [[[0, 1], [1, 0], [1, 0]]]
    assert result.lower_bound.tolist() == [50]


def test_experts_without_tokens_are_split_evenly() -> None:
    placement = Placement([[0, 1, 0, 2, 0, 1]], 3)
    result = split_replicas(placement, [[0, 3, 3]])
    np.testing.assert_allclose(result.weights[0, 0], [1 / 3, 1 / 3, 1 / 3])
    nothing = split_replicas(placement, [[0, 0, 0]])
    np.testing.assert_allclose(nothing.weights[0], np.array([[1 / 3] * 3, [0.5, 0.5, 0], [1.0, 0, 0]]))
    assert nothing.lower_bound.tolist() == [0]
    assert nothing.balancedness.tolist() == [1]
    assert nothing.gap.tolist() == [0]


def test_uneven_empty_and_doubled_slots_are_split_too() -> None:
    uneven = Placement([[0, 1, 2, 0]], 4, slots_per_rank=[2, 0, 1, 1], allow_uneven=True)
    result = split_replicas(uneven, [[6, 3, 1]])
    check_weights(result, np.array([[6.0, 3, 1]]))
    np.testing.assert_allclose(result.rank_load, [[4.5, 0, 1, 4.5]])
    doubled = Placement([[0, 0, 0, 1]], 2, allow_duplicates=True)
    result = split_replicas(doubled, [[4, 2]])
    check_weights(result, np.array([[4.0, 2]]))
    np.testing.assert_allclose(result.rank_load, [[3, 3]])


def test_steps_are_summed() -> None:
    steps = np.random.default_rng(0).random((4, 2, 16))
    placement = plan(steps[0], num_physical_experts=20, ep_size=4).placement
    wanted = split_replicas(placement, steps.sum(axis=0))
    for load in (steps, ExpertLoad(steps)):
        result = split_replicas(placement, load)
        np.testing.assert_array_equal(result.weights, wanted.weights)


@pytest.mark.parametrize("rows", [1, 7, 128])
def test_a_routing_table_gives_each_copy_its_share_to_one_token(rows: int) -> None:
    load = realistic_load(2, 24)
    placement = plan(load[::-1], num_physical_experts=40, ep_size=8).placement
    result = split_replicas(placement, load)
    for layer in range(2):
        table = result.routing_table(layer, 3, rows=rows)
        assert table.shape == (rows, 24)
        np.testing.assert_array_equal(
            table, placement.weighted_routing_table(layer, 3, result.weights[layer], rows=rows)
        )
        for expert in range(24):
            for index, slot in enumerate(placement.logical_to_physical[layer, expert]):
                if slot >= 0:
                    given_tokens = (table[:, expert] == slot).sum()
                    assert abs(given_tokens - rows * result.weights[layer, expert, index]) < 1 + 1e-6


def test_a_table_of_what_does_not_exist_is_refused() -> None:
    result = split_replicas(Placement([[0, 1, 0, 2]], 2), [[1, 1, 1]])
    for layer, rank, rows, message in (
        (1, 0, 8, "layer is 1"),
        (0, 2, 8, "ep_rank is 2"),
        (0, 0, 0, "rows is 0"),
    ):
        with pytest.raises(ExpertMapsError, match=message):
            result.routing_table(layer, rank, rows=rows)


def test_a_bad_load_is_refused() -> None:
    placement = Placement([[0, 1, 0, 2]], 2)
    with pytest.raises(LoadError, match="load has 1 layer and 2 experts; expected 1 and 3"):
        split_replicas(placement, [[1, 2]])
    with pytest.raises(LoadError, match="load at layer 0, expert 2 is -1"):
        split_replicas(placement, [[1, 2, -1]])
