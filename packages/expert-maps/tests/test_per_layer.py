# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Redundant experts by layer: the budget against every way to spend it, and what a plan says of itself."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expert_maps import ExpertMapsError, balancedness, plan, rank_load, step_peaks
from expert_maps.budgeting import cheapest, spend
from expert_maps.per_layer import SERVED_BY, plan_per_layer
from expert_maps.reference import budgeting as slow

if TYPE_CHECKING:
    from numpy.typing import NDArray


def skewed(seed: int, layers: int = 4, experts: int = 8) -> NDArray[np.float64]:
    """Return layers of which some need copies and some do not."""
    rng = np.random.default_rng(seed)
    load = rng.lognormal(sigma=1.2, size=(layers, experts))
    load[::2] = 1.0
    return np.floor(10_000 * load / load.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("seed", range(40))
def test_a_budget_is_spent_as_well_as_by_trying_every_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, options = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    units = int(rng.integers(0, layers * options + 1))
    # Not always falling, nor convex, with ties, and with what cannot be.
    cost = rng.integers(0, 3 if seed % 2 else 9, size=(layers, options)).astype(np.float64)
    cost[:, 1:][rng.random((layers, options - 1)) < 0.2] = np.inf
    chosen = spend(cost, units)
    found = (cost[np.arange(layers), chosen].sum(), chosen.sum())
    assert found == slow.spend(cost.tolist(), units)
    every = cheapest(cost, units)
    assert [slow.spend(cost.tolist(), most)[0] for most in range(units + 1)] == every.tolist()


def test_of_equal_ways_the_one_with_fewest_slots_is_taken() -> None:
    # One unit of the second layer saves as much as two of the first.
    assert spend(np.array([[2.0, 2, 1], [1, 0, 0]]), 2).tolist() == [0, 1]
    assert spend(np.array([[1.0, 0, 0], [2, 2, 1]]), 2).tolist() == [1, 0]


def test_layers_that_need_copies_get_them() -> None:
    load = skewed(0)
    result = plan_per_layer(load, ep_size=4, num_redundant_experts=2)
    assert result.budget == 10
    assert result.slots_per_layer.tolist() == [2, 3, 2, 3]
    assert not result.is_equal
    assert result.equal.num_physical_experts == 8
    assert result.cost < result.equal_cost
    np.testing.assert_array_equal(result.balancedness[::2], 1.0)
    np.testing.assert_array_equal(result.rank_load, rank_load(result.placement, load))
    assert SERVED_BY in result.summary()
    assert "2 in 2, 3 in 2" in result.summary()
    assert repr(result).startswith("PerLayerPlan(num_layers=4, slots=2…3, budget=10")


@pytest.mark.parametrize("seed", range(6))
def test_no_way_to_spend_the_budget_is_better_or_below_the_bound(seed: int) -> None:
    load = skewed(seed) + np.random.default_rng(seed).integers(0, 300, size=(4, 8))
    for redundant in (1, 3, 4, 6):
        result = plan_per_layer(load, ep_size=4, num_redundant_experts=redundant)
        planned = {
            slots: plan(load, ep_size=4, num_physical_experts=4 * slots).max_rank_load
            for slots in range(2, 9)
        }
        ways = [way for way in product(range(2, 9), repeat=4) if sum(way) <= result.budget]
        best = min(sum(planned[slots][layer] for layer, slots in enumerate(way)) for way in ways)
        assert result.budget == 4 * (8 + redundant) // 4
        assert result.slots_per_layer.sum() <= result.budget
        assert result.cost <= best * 1.0004
        assert result.least_cost <= best * (1 + 1e-9)
        assert result.least_cost <= result.cost
        assert result.cost <= result.equal_cost
        assert result.cost == pytest.approx(result.max_rank_load.sum())
        assert (result.lower_bound <= result.max_rank_load * (1 + 1e-9)).all()
        assert result.gap == pytest.approx(result.cost / result.least_cost - 1)


def test_enough_is_a_budget_that_reaches_equal_slots() -> None:
    load = skewed(3)
    result = plan_per_layer(load, ep_size=4, num_redundant_experts=4)
    assert result.enough < 12
    again = plan_per_layer(load, ep_size=4, num_physical_experts=4 * -(-result.enough // 4))
    assert again.cost <= result.equal_cost * 1.0004


def test_of_several_steps_each_has_its_hottest_rank() -> None:
    rng = np.random.default_rng(1)
    steps = rng.poisson(rng.lognormal(sigma=1, size=(4, 3, 8)) * 50).astype(np.float64)
    result = plan_per_layer(steps, ep_size=4, num_redundant_experts=2)
    assert result.cost == pytest.approx(step_peaks(result.placement, steps).sum())
    assert result.cost <= step_peaks(plan(steps, ep_size=4).placement, steps).sum()
    assert result.least_cost <= result.cost


def test_equal_slots_are_said_where_they_are_the_best_and_groups_stay_on_nodes() -> None:
    load = np.tile(np.array([[30.0, 1, 1, 1, 1, 1, 1, 1]]), (2, 1))
    result = plan_per_layer(load, ep_size=4, num_redundant_experts=4)
    assert result.is_equal
    assert "every server takes it" in result.summary()
    grouped = plan_per_layer(load, ep_size=4, num_redundant_experts=6, num_groups=4, num_nodes=2)
    for layer in range(2):
        for group in range(4):
            ranks = {
                rank
                for rank in range(4)
                if (grouped.placement.local_experts(layer, rank) // 2 == group).any()
            }
            assert len({rank // 2 for rank in ranks}) == 1


def test_a_layer_that_is_level_is_given_no_more() -> None:
    result = plan_per_layer(np.ones((3, 8)), ep_size=4, num_redundant_experts=8)
    assert result.slots_per_layer.tolist() == [2, 2, 2]
    assert result.enough == 6
    assert result.gap == 0
    assert balancedness(result.placement, np.ones((3, 8))).tolist() == [1, 1, 1]
    assert plan_per_layer(np.zeros((1, 8)), ep_size=4).gap == 0


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    plan_per_layer(
        skewed(0), ep_size=4, num_redundant_experts=2, progress=lambda done, of: told.append((done, of))
    )
    assert told
    assert all(done <= of for done, of in told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ep_size": 3}, None),
        ({"ep_size": 3, "num_redundant_experts": 0}, "num_physical_experts is 8, which gives a rank 2 slots in each layer; expected at least 9, 3 slots"),
        ({"ep_size": 4, "num_redundant_experts": -1}, "num_redundant_experts is -1; expected at least 0"),
        ({"ep_size": 4, "num_physical_experts": 40}, "num_physical_experts is 40; expected 8 … 32"),
        ({"ep_size": 4, "tolerance": 0}, "tolerance is 0; expected more than 0"),
        ({"ep_size": 4, "num_groups": 3}, "num_groups is 3; expected a divisor"),
        ({"ep_size": 4, "num_groups": 1, "num_nodes": 2}, "num_groups is 1 and num_nodes 2; expected groups that divide"),
        ({"ep_size": 0}, "ep_size is 0; expected at least 1"),
    ],
)  # fmt: skip
def test_counts_without_a_placement_are_refused(options: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert plan_per_layer(skewed(0), **options).placement.ep_size == 3
        return
    with pytest.raises(ExpertMapsError) as found:
        plan_per_layer(skewed(0), **options)
    assert message in str(found.value)
