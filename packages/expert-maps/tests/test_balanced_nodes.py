# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Expert groups that stay on nodes."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from balanced_cases import Problem, grouped_problems, nodes_of_group, realistic_load
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from expert_maps import LayoutError, Placement, plan, rank_load
from expert_maps.policies._broken import broken_layers
from expert_maps.policies.base import Cluster, Start


@settings(deadline=None)
@given(grouped_problems())
def test_every_group_is_on_one_node_and_nodes_are_alike(problem: Problem) -> None:
    result = problem.plan(problem.load())
    placement = result.placement
    for layer in range(problem.layers):
        homes = [
            nodes_of_group(placement, layer, group, problem.groups, problem.nodes)
            for group in range(problem.groups)
        ]
        assert all(len(home) == 1 for home in homes)
        filled = [homes.count({node}) for node in range(problem.nodes)]
        assert filled == [problem.groups // problem.nodes] * problem.nodes
    per_node = placement.slots_per_rank.reshape(problem.nodes, -1)
    assert (per_node == per_node[0]).all()
    assert per_node.sum(axis=1).tolist() == [problem.slots // problem.nodes] * problem.nodes
    assert np.ptp(per_node) <= 1
    assert (result.lower_bound <= result.max_rank_load * (1 + 1e-9)).all()
    assert (result.lower_bound * (1 + 1e-9) >= result.rank_load.mean(axis=1)).all()
    assert problem.plan(problem.load()).placement == placement


def test_the_bound_knows_that_groups_stay_together() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        load = rng.lognormal(sigma=1.5, size=(1, 24))
        groups = load.reshape(6, 4).sum(axis=1)
        halves = [
            max(groups[list(half)].sum(), groups.sum() - groups[list(half)].sum())
            for half in combinations(range(6), 3)
        ]
        result = plan(load, num_physical_experts=32, ep_size=4, num_groups=6, num_nodes=2, tolerance=1e-6)
        flat = plan(load, num_physical_experts=32, ep_size=4)
        # Up to a quarter of the tolerance, and the mean where that is enough; more where no half can be planned so well.
        assert result.lower_bound[0] >= min(halves) / 2 * (1 - 1e-6)
        assert result.lower_bound[0] <= result.max_rank_load[0] * (1 + 1e-9)
        assert result.max_rank_load[0] >= flat.lower_bound[0] * (1 - 1e-9)


def test_a_realistic_load_comes_near_to_the_constrained_bound() -> None:
    load = realistic_load(12, 256, seed=3)
    counts = {"num_physical_experts": 288, "ep_size": 32, "num_groups": 8, "num_nodes": 4}
    result = plan(load, **counts)  # type: ignore[arg-type]
    peer = plan(load, **counts, policy="deepseek")  # type: ignore[arg-type]
    assert result.gap.mean() <= 0.0005
    assert (result.max_rank_load <= peer.max_rank_load * 1.0004).all()


def test_many_groups_on_one_node_are_planned_flat() -> None:
    load = realistic_load(3, 24)
    flat = plan(load, num_physical_experts=32, ep_size=4)
    many_on_one = plan(load, num_physical_experts=32, ep_size=4, num_groups=6, num_nodes=1)
    assert many_on_one.placement == flat.placement


def test_uneven_slots_are_alike_on_every_node() -> None:
    load = realistic_load(2, 24)
    result = plan(load, num_physical_experts=30, ep_size=8, num_groups=4, num_nodes=2, allow_uneven=True)
    assert result.placement.slots_per_rank.tolist() == [4, 4, 4, 3] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_physical_experts": 56},
            "num_physical_experts is 56; expected at most 48: .* once on each rank of its node",
        ),
        ({"num_physical_experts": 31, "allow_uneven": True}, "31; expected a multiple of num_nodes 2"),
        ({"num_nodes": 3}, "num_nodes is 3; expected a divisor of ep_size 4"),
        ({"num_groups": 5}, "num_groups is 5; expected a divisor of the 24 experts"),
    ],
)
def test_counts_that_no_node_can_hold_are_named(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"num_physical_experts": 32, "ep_size": 4, "num_groups": 4, "num_nodes": 2}
    with pytest.raises(LayoutError, match=message):
        plan(np.ones((2, 24)), **arguments | options)  # type: ignore[arg-type]


def test_a_start_against_the_node_rule_is_named_for_it_can_become_hotter() -> None:
    # Group 0 (experts 0 and 1) is on both nodes; to put that right costs a hotter rank: 8 before, 12 after.
    load = [[5, 7, 0, 3], [5, 7, 0, 3]]
    current = Placement([[1, 2, 0, 3], [0, 1, 2, 3]], 2)
    counts: dict[str, Any] = {"num_physical_experts": 4, "ep_size": 2, "num_groups": 2, "num_nodes": 2}
    result = plan(load, **counts, current=current)
    assert rank_load(current, load).max(axis=1).tolist() == [8, 12]
    assert result.max_rank_load.tolist() == [12, 12]
    assert result.mended.tolist() == [True, False]
    # Without the node rule nothing is to be put right, nor where there is no start.
    assert not plan(load, num_physical_experts=4, ep_size=2, current=current).mended.any()
    assert plan(load, **counts).mended.tolist() == [False, False]


def test_a_node_with_too_many_groups_is_named_too() -> None:
    # Every group is on one node, but the first node has three of four.
    current = Placement([[0, 1, 2, 3, 3, 3]], 6)
    counts: dict[str, Any] = {"num_physical_experts": 6, "ep_size": 6, "num_groups": 4, "num_nodes": 2}
    result = plan([[1, 2, 3, 4]], **counts, current=current)
    assert result.mended.tolist() == [True]


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        ([0, 1, 2, 3], False),
        # Where ranks have failed, a group can be on two nodes without crowding either.
        ([0, -1, 0, -1], True),
        ([0, 0, 2, 3], True),
        ([0, -1, -1, -1], False),
    ],
)
def test_what_breaks_a_rule_in_a_start_with_empty_slots(row: list[int], broken: bool) -> None:
    start = Start(np.array([row], dtype=np.int32), np.array([2, 2], dtype=np.int32))
    assert broken_layers(start, 4, Cluster(4, 2, num_groups=4, num_nodes=2)).tolist() == [broken]


@settings(deadline=None)
@given(grouped_problems(("random", "lognormal", "zipf", "ties")), st.integers(0, 2**31), st.booleans())
def test_only_a_layer_that_breaks_a_rule_becomes_hotter(problem: Problem, seed: int, keeps: bool) -> None:
    per_rank = problem.slots // problem.ranks
    assume(problem.slots % problem.ranks == 0 and per_rank * problem.ranks >= problem.experts)
    load = problem.load()
    current = problem.plan(problem.load(salt=1)).placement
    if not keeps:
        rows = np.random.default_rng(seed).permuted(current.physical_to_logical, axis=1)
        current = Placement(rows, problem.ranks, num_logical_experts=problem.experts, allow_duplicates=True)
    result = problem.plan(load, current=current)
    broken = [
        any(
            len(nodes_of_group(current, layer, group, problem.groups, problem.nodes)) > 1
            for group in range(problem.groups)
        )
        or any(
            len(set(row.tolist())) < per_rank
            for row in current.physical_to_logical[layer].reshape(-1, per_rank)
        )
        for layer in range(problem.layers)
    ]
    # A permutation may also leave every group on one node, but too many of them on the same.
    assert (result.mended >= broken).all()
    assert keeps <= (not result.mended.any())
    was = rank_load(current, load).max(axis=1)
    assert (result.mended | (result.max_rank_load <= was * (1 + 1e-9))).all()
