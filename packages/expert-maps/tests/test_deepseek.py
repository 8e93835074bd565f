# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import LOAD_KINDS, Counts, counts, loads

from expert_maps import LayoutError, plan
from expert_maps.policies import deepseek
from expert_maps.policies._mend import duplicate_layers

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The example of DeepSeek EPLB's README.
README_LOAD = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_PLAN = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def slow_packing(weight: list[np.float32], packs: int) -> list[list[int]]:
    room = len(weight) // packs
    if room == 1:
        return [[item] for item in range(packs)]
    result: list[list[int]] = [[] for _ in range(packs)]
    total = [np.float32(0)] * packs
    for item in sorted(range(len(weight)), key=lambda item: -weight[item]):
        pack = min((p for p in range(packs) if len(result[p]) < room), key=lambda p: total[p])
        result[pack].append(item)
        total[pack] = np.float32(total[pack] + weight[item])
    return result


def slow_plan(load: NDArray[np.float64], physical: int, ranks: int, groups: int, nodes: int) -> list[int]:
    """Plan one layer in plain Python."""
    weight = load.astype(np.float32)
    size = len(weight) // groups
    placed: list[int] = []
    sums = [weight[g * size : (g + 1) * size].sum() for g in range(groups)]
    for packed in slow_packing(sums, nodes):
        experts = [e for g in packed for e in range(g * size, (g + 1) * size)]
        copies, count = list(range(len(experts))), [1] * len(experts)
        while len(copies) < physical // nodes:
            share = [weight[e] / np.float32(n) for e, n in zip(experts, count, strict=True)]
            copies.append(share.index(max(share)))
            count[copies[-1]] += 1
        shares = [weight[experts[c]] / np.float32(count[c]) for c in copies]
        for pack in slow_packing(shares, ranks // nodes):
            placed += [experts[copies[item]] for item in pack]
    return placed


def test_the_published_example_bit_for_bit() -> None:
    result = plan(
        README_LOAD, num_physical_experts=16, ep_size=8, policy="deepseek", num_groups=4, num_nodes=2
    )
    assert result.placement.physical_to_logical.tolist() == README_PLAN
    slots, logical_to_physical, count = deepseek.rebalance_experts(np.array(README_LOAD), 16, 4, 2, 8)
    assert slots.tolist() == README_PLAN
    for layer in range(2):
        assert count[layer].tolist() == np.bincount(README_PLAN[layer]).tolist()
        for expert, row in enumerate(logical_to_physical[layer].tolist()):
            held = sorted(slot for slot in row if slot >= 0)
            assert held == [slot for slot, e in enumerate(README_PLAN[layer]) if e == expert]


@given(counts(), st.integers(0, 2**32 - 1), st.sampled_from(LOAD_KINDS))
def test_the_global_policy_equals_a_plain_loop(drawn: Counts, seed: int, kind: str) -> None:
    load = loads(drawn, seed, kind)
    result = plan(
        load,
        num_physical_experts=drawn.num_physical,
        ep_size=drawn.ep_size,
        policy="deepseek_global",
        allow_duplicates=True,
    )
    for layer in range(drawn.num_layers):
        wanted = slow_plan(load[layer], drawn.num_physical, drawn.ep_size, 1, 1)
        assert result.placement.physical_to_logical[layer].tolist() == wanted


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Counts, int, int]:
    """Counts whose groups divide by the nodes, and a load's worth of everything else."""
    nodes = draw(st.integers(1, 3))
    groups = nodes * draw(st.integers(1, 3))
    experts = groups * draw(st.integers(1, 4))
    ranks_per_node = draw(st.integers(1, 4))
    per_node = experts // nodes
    slots = draw(st.integers(-(-per_node // ranks_per_node), per_node))
    ranks = ranks_per_node * nodes
    return Counts(draw(st.integers(1, 3)), experts, ranks, slots * ranks), groups, nodes


@given(clusters(), st.integers(0, 2**32 - 1), st.sampled_from(LOAD_KINDS))
def test_the_hierarchical_policy_equals_a_plain_loop(
    cluster: tuple[Counts, int, int], seed: int, kind: str
) -> None:
    drawn, groups, nodes = cluster
    load = loads(drawn, seed, kind)
    slots, _, _ = deepseek.rebalance_experts(load, drawn.num_physical, groups, nodes, drawn.ep_size)
    for layer in range(drawn.num_layers):
        wanted = slow_plan(load[layer], drawn.num_physical, drawn.ep_size, groups, nodes)
        assert slots[layer].tolist() == wanted


@given(clusters(), st.integers(0, 2**32 - 1), st.sampled_from(LOAD_KINDS))
def test_no_expert_stands_twice_and_groups_stay_on_their_node(
    cluster: tuple[Counts, int, int], seed: int, kind: str
) -> None:
    drawn, groups, nodes = cluster
    load = loads(drawn, seed, kind)
    options = {"num_physical_experts": drawn.num_physical, "ep_size": drawn.ep_size}
    options |= {"num_groups": groups, "num_nodes": nodes}
    result = plan(load, policy="deepseek_hierarchical", **options)  # type: ignore[arg-type]
    slots = result.placement.physical_to_logical
    assert duplicate_layers(slots.astype(np.int64), drawn.ep_size).size == 0
    # All copies of the experts of a group are on one node.
    node = result.placement.slot_rank // (drawn.ep_size // nodes)
    group = slots // (drawn.num_experts // groups)
    for layer in range(drawn.num_layers):
        for index in range(groups):
            assert len(set(node[group[layer] == index])) == 1
    # Where DeepSeek's own answer is free of duplicates, it is kept to the bit.
    own, _, _ = deepseek.rebalance_experts(load, drawn.num_physical, groups, nodes, drawn.ep_size)
    clean = np.setdiff1d(np.arange(drawn.num_layers), duplicate_layers(own, drawn.ep_size))
    np.testing.assert_array_equal(slots[clean], own[clean])


def test_one_hot_load_reaches_perfect_balance() -> None:
    load = np.zeros((1, 64))
    load[0, 9] = 1000
    result = plan(load, num_physical_experts=72, ep_size=8, policy="deepseek")
    assert result.balancedness.tolist() == [1.0]
    assert result.placement.replica_count[0, 9] == 8


def test_groups_that_do_not_divide_by_nodes_are_planned_globally_or_refused() -> None:
    load = np.random.default_rng(0).random((2, 12))
    options = {"num_physical_experts": 16, "ep_size": 4, "num_groups": 3, "num_nodes": 2}
    globally = plan(load, num_physical_experts=16, ep_size=4, policy="deepseek_global")
    assert plan(load, policy="deepseek", **options).placement == globally.placement  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="num_groups is 3; expected a multiple of num_nodes 2"):
        plan(load, policy="deepseek_hierarchical", **options)  # type: ignore[arg-type]


def test_more_copies_than_a_node_can_hold_are_refused() -> None:
    with pytest.raises(LayoutError, match="num_physical_experts is 8; expected at most 4"):
        plan([[1, 2]], num_physical_experts=8, ep_size=4, policy="deepseek", num_groups=2, num_nodes=2)
