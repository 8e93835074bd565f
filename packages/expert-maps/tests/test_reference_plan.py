# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whole plans: what the compiled planner answers is what the reference answers, slot for slot."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from reference_cases import KINDS, draw

from expert_maps import POLICY_NAMES, LayoutError, plan, read_placement
from expert_maps.load import as_load
from expert_maps.policies.balanced import balanced
from expert_maps.policies.base import Cluster
from expert_maps.reference.nodes import assign_groups
from expert_maps.reference.planner import Problem, plan_layer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def draw_cluster(rng: np.random.Generator, *, grouped: bool) -> tuple[int, Cluster]:
    """Draw counts: experts, and what to plan for."""
    if grouped:
        nodes, groups = int(rng.integers(2, 5)), int(rng.integers(1, 4))
        size, per_node = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        experts, ranks = nodes * groups * size, nodes * per_node
        most = groups * size
        slots = nodes * int(rng.integers(most, min(most * per_node, most + 9) + 1))
        return experts, Cluster(slots, ranks, nodes * groups, nodes, allow_uneven=True)
    experts, ranks = int(rng.integers(1, 20)), int(rng.integers(1, 9))
    if rng.random() < 0.4:
        experts = min(experts, 2 * ranks)
        slots = 2 * ranks if experts > 1 else ranks
    else:
        slots = int(rng.integers(experts, min(experts * ranks, experts + 2 * ranks + 4) + 1))
    return experts, Cluster(max(slots, experts), ranks, allow_uneven=True)


def compare(load: NDArray[np.float64], cluster: Cluster, tolerance: float) -> None:
    rows, bound = balanced(as_load(load[None]), cluster, tolerance)
    scale = 2.0 ** -np.frexp(load.max())[1]
    problem = Problem(
        cluster.slots_per_rank.tolist(),
        cluster.num_groups,
        cluster.num_nodes,
        tolerance,
        int(min(max(4 * (4e-4 / tolerance - 1), 0), 64)),
    )
    plan = plan_layer((load * scale).tolist(), problem)
    assert rows[0].tolist() == [expert for slots in plan.slots for expert in slots]
    assert bound[0] == pytest.approx(plan.bound / scale, rel=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_plans_are_the_references(grouped: bool) -> None:
    for seed in range(150 if grouped else 300):
        rng = np.random.default_rng([41, seed])
        experts, cluster = draw_cluster(rng, grouped=grouped)
        load = draw(KINDS[seed % len(KINDS)], experts, rng)
        compare(load, cluster, float(rng.choice([4e-4, 0.01, 0.1, 1e-4])))


def test_plans_of_real_sizes_are_the_references() -> None:
    for seed, (experts, ranks, slots) in enumerate([(64, 16, 80), (48, 32, 64), (96, 8, 104)]):
        load = np.random.default_rng([42, seed]).lognormal(size=experts)
        compare(load, Cluster(slots, ranks), 4e-4)


def test_groups_go_to_the_coolest_assignment() -> None:
    for seed in range(200):
        rng = np.random.default_rng([43, seed])
        nodes, room = int(rng.integers(2, 4)), int(rng.integers(1, 4))
        load = (
            draw(KINDS[seed % len(KINDS)], nodes * room, rng)
            if nodes * room < 7
            else rng.random(nodes * room)
        )
        node_of, bound = assign_groups(load.tolist(), nodes, 0.0)
        sums = np.bincount(node_of, weights=load, minlength=nodes)
        assert np.bincount(node_of, minlength=nodes).tolist() == [room] * nodes
        if nodes * room < 7:
            every = np.array(list(permutations(load))).reshape(-1, nodes, room).sum(axis=2).max(axis=1)
            assert sums.max() == pytest.approx(every.min())
            assert bound == pytest.approx(every.min())


def test_as_a_policy_it_plans_what_balanced_plans() -> None:
    load = np.random.default_rng(44).lognormal(size=(3, 16)) * 1e5
    counts: dict[str, Any] = {"ep_size": 4, "num_physical_experts": 24, "num_groups": 4, "num_nodes": 2}
    result = plan(load, policy="reference", **counts)
    assert result.placement == plan(load, **counts).placement
    assert result.policy == "reference"
    assert "reference" not in POLICY_NAMES
    with pytest.raises(LayoutError, match="groups that divide by the nodes"):
        plan(load, policy="reference", ep_size=4, num_groups=1, num_nodes=2)
    with pytest.raises(LayoutError, match=r"tolerance is 0\.1; expected none with policy 'reference'"):
        plan(load, policy="reference", ep_size=4, tolerance=0.1)


def test_the_command_line_knows_it(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.random.default_rng(45).lognormal(size=(2, 8)) * 1e5)
    maps = []
    for policy in ("balanced", "reference"):
        path = tmp_path / f"{policy}.json"
        options = ["--ep-size", "4", "--redundant", "4", "--policy", policy, "--output", str(path)]
        command = [sys.executable, "-m", "expert_maps", "plan", str(tmp_path / "load.npy"), *options]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        maps.append(read_placement(path))
    assert maps[0] == maps[1]
