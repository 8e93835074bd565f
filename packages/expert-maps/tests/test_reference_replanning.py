# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Plans from a placement in use, and on other ranks: the compiled planner answers what the reference does."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from reference_cases import KINDS, draw
from test_reference_plan import draw_cluster

from expert_maps.errors import LayoutError
from expert_maps.load import as_load
from expert_maps.policies.balanced import balanced
from expert_maps.policies.base import Cluster, Start
from expert_maps.reference.planner import Problem
from expert_maps.reference.relabelling import assign, keep_places, names
from expert_maps.reference.replanning import NotGroupedError, Replanned, replan_layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 4e-4


def runs(flat: NDArray[np.int32], sizes: NDArray[np.int64]) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(sizes)[:-1])]


def kept(slots: list[list[int]], held: list[list[int]]) -> int:
    return sum(expert in held[rank] for rank, experts in enumerate(slots) for expert in experts)


def draw_held(cluster: Cluster, experts: int, rng: np.random.Generator) -> list[list[int]]:
    """Draw what ranks hold: a plan for another load, in which ranks may be lost, slots gone, or new."""
    before = draw("lognormal", experts, rng)
    rows, _ = balanced(as_load(before[None]), cluster, 0.01)
    held = runs(rows[0], cluster.slots_per_rank)
    if rng.random() < 0.4:
        for rank in rng.integers(len(held), size=2).tolist():
            held[rank] = []
    if rng.random() < 0.3:  # ranks with more slots than they are to have
        held = [[*slots, int(rng.integers(experts))] for slots in held]
    if rng.random() < 0.3:
        held = [[-1 if rng.random() < 0.2 else expert for expert in slots] for slots in held]
    return held


def compare(seed: int, *, grouped: bool) -> Replanned | None:
    rng = np.random.default_rng([71, seed])
    experts, cluster = draw_cluster(rng, grouped=grouped)
    held = draw_held(cluster, experts, rng)
    load = draw(KINDS[seed % len(KINDS)], experts, rng)
    max_moves = None if rng.random() < 0.4 else int(rng.integers(0, 7))
    return compare_from(held, load, cluster, max_moves, seed)


def compare_from(
    held: list[list[int]], load: NDArray[np.float64], cluster: Cluster, max_moves: int | None, seed: int
) -> Replanned | None:
    flat = np.array([[expert for slots in held for expert in slots]], dtype=np.int32).reshape(1, -1)
    start = Start(flat, np.array([len(slots) for slots in held], dtype=np.int32), max_moves)
    problem = Problem(cluster.slots_per_rank.tolist(), cluster.num_groups, cluster.num_nodes, TOLERANCE, 0)
    scale = 2.0 ** -np.frexp(load.max())[1]
    try:
        expected = replan_layer((load * scale).tolist(), problem, held, max_moves)
    except NotGroupedError:
        with pytest.raises(LayoutError, match="on several nodes"):
            balanced(as_load(load[None]), cluster, TOLERANCE, start)
        return None
    rows, bound = balanced(as_load(load[None]), cluster, TOLERANCE, start)
    found = runs(rows[0], cluster.slots_per_rank)
    assert bound[0] * scale == pytest.approx(expected.bound, rel=1e-12), seed
    if expected.is_anew:  # under names that may differ, but as many copies stay
        assert sorted(map(sorted, found)) == sorted(map(sorted, expected.slots)), seed
        assert kept(found, held) == kept(expected.slots, held), seed
    else:
        assert found == expected.slots, seed
    return expected


@pytest.mark.parametrize("grouped", [False, True])
def test_plans_from_a_placement_in_use_are_the_references(grouped: bool) -> None:
    found = [compare(seed, grouped=grouped) for seed in range(120 if grouped else 250)]
    anew = sum(plan is not None and plan.is_anew for plan in found)
    assert 10 < anew < 0.7 * len(found)
    assert not grouped or None in found


def test_a_larger_layer_is_attempted_as_often_as_the_reference_does() -> None:
    # So many slots that no plan anew is made, and so many moves that the last attempt is left out.
    experts, cluster = 48, Cluster(144, 18, 1, 1)
    for seed, max_moves in ((0, 55), (1, 30)):
        rng = np.random.default_rng([73, seed])
        held = draw_held(cluster, experts, np.random.default_rng([74, seed]))
        found = compare_from(held, draw("lognormal", experts, rng), cluster, max_moves, seed)
        assert found is not None
        assert not found.is_anew


def test_names_keep_most() -> None:
    for seed in range(60):
        rng = np.random.default_rng([72, seed])
        n = int(rng.integers(1, 6))
        gain = rng.integers(0, 5, size=(n, n))
        found = gain[np.arange(n), assign(gain)].sum()
        assert found == max(gain[np.arange(n), list(order)].sum() for order in permutations(range(n)))


def test_ranks_keep_their_node_and_size() -> None:
    new, old = [[0, 1], [2], [3, 4], [5]], [[3, 4], [9], [1, 0], [2]]
    assert names(new, old, [2, 1, 2, 1], 2) == [2, 3, 0, 1]
    assert names(new, old, [2, 1, 2, 1], 1) == [2, 3, 0, 1]


def test_what_stays_keeps_its_slot() -> None:
    assert keep_places([4, 2, 7], [7, 9, 4]) == [7, 2, 4]
    assert keep_places([4, 2], [-1, 4, 2]) == [2, 4]
