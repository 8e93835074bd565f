# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Windows of the load: the compiled descent answers what its twin does, and lowers what it is meant to lower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from reference_cases import KINDS, draw
from test_reference_plan import draw_cluster

from expert_maps.load import as_load
from expert_maps.policies._windows import draw_windows
from expert_maps.policies.balanced import over_windows
from expert_maps.reference.planner import Problem, plan_layer
from expert_maps.reference.windows import Windowed, descend_windows, windowed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.policies.base import Cluster


def draw_steps(seed: int, *, grouped: bool) -> tuple[NDArray[np.float64], Cluster]:
    """Draw a load of some steps, [steps, E], in which experts come and go, and counts."""
    rng = np.random.default_rng([51, seed])
    experts, cluster = draw_cluster(rng, grouped=grouped)
    steps = int(rng.integers(2, 7))
    load = draw(KINDS[seed % len(KINDS)], experts, rng) * rng.lognormal(sigma=0.8, size=(steps, experts))
    return np.floor(load * 1000) * rng.uniform(0.2, 3, size=(steps, 1)), cluster


def reference(load: NDArray[np.float64], cluster: Cluster) -> tuple[list[list[int]], Windowed]:
    """Return the plan of the sum, and the state after its descent over windows."""
    problem = Problem(cluster.slots_per_rank.tolist(), cluster.num_groups, cluster.num_nodes, 0.01 / 0.9, 0)
    scale = 2.0 ** -np.frexp(load.sum(axis=0).max())[1]
    start = plan_layer((load.sum(axis=0) * scale).tolist(), problem).slots
    windows = draw_windows(as_load(load[:, None]))
    state = windowed(windows[0], [list(slots) for slots in start], problem.ranks_per_node)
    descend_windows(state)
    return start, state


@pytest.mark.parametrize("grouped", [False, True])
def test_plans_for_windows_are_the_references(grouped: bool) -> None:
    changed = 0
    for seed in range(70 if grouped else 45):
        load, cluster = draw_steps(seed, grouped=grouped)
        rows = over_windows(as_load(load[:, None]), cluster, 4e-4)
        start, state = reference(load, cluster)
        assert rows[0].tolist() == [expert for slots in state.slots for expert in slots], (seed, cluster)
        changed += start != state.slots
    assert changed > 15


def objective(load: NDArray[np.float64], slots: list[list[int]]) -> float:
    """Return Σ windows (Σ ranks load³²)^(1/32), in units of the mean, in 64 bits and by the book."""
    share = load / np.bincount(np.concatenate(slots).astype(int), minlength=load.shape[1])
    ranks = np.stack([share[:, held].sum(axis=1) for held in slots], axis=1)
    return float(np.linalg.norm(ranks / ranks.mean(), 32, axis=1).sum())


def test_the_descent_lowers_the_objective() -> None:
    lower = number = 0
    for seed in range(20):
        load, cluster = draw_steps(seed, grouped=False)
        load += 1
        windows = draw_windows(as_load(load[:, None]))
        start, state = reference(load, cluster)
        before, after = objective(windows[0], start), objective(windows[0], state.slots)
        assert after <= before * (1 + 1e-4)
        assert float(state.value) == pytest.approx(after, rel=1e-5)
        number += start != state.slots
        lower += after < before * (1 - 1e-5)
    assert lower == number > 5
