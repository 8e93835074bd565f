# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Small layers against a plain enumeration of all placements; certificates that cost more, and the same plan with them."""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from reference_cases import KINDS, cases, draw, run_part

from expert_maps import LayoutError, plan
from expert_maps.reference.exact import try_all
from expert_maps.reference.packing import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def sets_of_ranks(experts: int, capacity: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield the ranks of each expert in every placement that fills all slots; by a plain loop, with no bound or order."""
    if experts == 0:
        if not any(capacity):
            yield ()
        return
    free = [rank for rank, room in enumerate(capacity) if room]
    for copies in range(1, len(free) + 1):
        for chosen in combinations(free, copies):
            left = tuple(room - (rank in chosen) for rank, room in enumerate(capacity))
            for rest in sets_of_ranks(experts - 1, left):
                yield (chosen, *rest)


def coolest(experts: int, capacity: list[int], loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the coolest hottest rank of all placements for each of some loads, [cases] of [cases, E]."""
    every = list(sets_of_ranks(experts, tuple(capacity)))
    shares = np.zeros((len(every), len(capacity), experts))
    for i, placement in enumerate(every):
        for expert, ranks in enumerate(placement):
            shares[i, list(ranks), expert] = 1 / len(ranks)
    best: NDArray[np.float64] = np.einsum("pre,ce->cpr", shares, loads).max(axis=2).min(axis=1)
    return best


SMALL = [
    *((3, 2, 4), (2, 3, 4), (3, 3, 4), (4, 2, 5), (4, 2, 6), (5, 2, 6), (3, 3, 6), (4, 3, 6), (5, 3, 6)),
    *((2, 4, 5), (3, 4, 6), (4, 4, 6), (3, 4, 8), (4, 3, 7), (5, 2, 8), (6, 2, 8), (6, 3, 7), (4, 4, 7)),
]


@pytest.mark.parametrize(("experts", "ranks", "slots"), SMALL)
def test_no_placement_of_all_is_cooler_or_below_the_bound(experts: int, ranks: int, slots: int) -> None:
    # 18 counts of 150 loads each: 2700 cases.
    rng = np.random.default_rng([61, experts, ranks, slots])
    loads = np.array([draw(KINDS[i % len(KINDS)], experts, rng) for i in range(150)])
    result = plan(loads, ep_size=ranks, num_physical_experts=slots, allow_uneven=True)
    best = coolest(experts, result.placement.slots_per_rank.tolist(), loads)
    np.testing.assert_array_less(result.lower_bound, best * (1 + 1e-12) + 1e-300)
    # The default stops within its tolerance of the bound.
    assert (result.max_rank_load <= best * (1 + 4.001e-4)).all()
    assert (result.gap <= 4.001e-4).all()
    tight = plan(loads, ep_size=ranks, num_physical_experts=slots, allow_uneven=True, tolerance=1e-9)
    np.testing.assert_allclose(tight.max_rank_load, best, rtol=3e-9)
    np.testing.assert_allclose(tight.lower_bound, best, rtol=3e-9)


def test_three_experts_on_four_slots_are_proved_optimal() -> None:
    loads = np.random.default_rng(62).random((200, 3))
    assert plan(loads, ep_size=2, num_physical_experts=4).gap.max() <= 2e-9


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_all_placements_are_tried_as_the_twin_does(kind: int) -> None:
    changed = proved = 0
    for case in cases(450, 63, experts=9, ranks=4):
        if case.seed % len(KINDS) != kind or case.slots > 14:
            continue
        layer = case.layer()
        pack(layer)
        for visits, change in ((60, True), (3000, True), (3000, False)):
            twin = layer.copy()
            found, bound = run_part("try_all", layer, low=0.0, steps=visits, recount=change)
            assert bound == try_all(twin, 0.0, visits, change=change), case
            assert (found.slots, found.count, found.order) == (twin.slots, twin.count, twin.order), case
            changed += twin.slots != layer.slots
            proved += bound > 0
    assert proved > 20
    assert changed > 5 or kind in {3, 4, 5, 6}


def test_a_try_that_is_cut_short_proves_nothing() -> None:
    cut = 0
    for case in cases(200, 64, experts=8, ranks=4):
        if case.slots > 12:
            continue
        layer = case.layer()
        pack(layer)
        _, best = run_part("try_all", layer, low=0.0, steps=10**7, recount=False)
        for steps in (5, 40):
            _, bound = run_part("try_all", layer, low=0.0, steps=steps, recount=False)
            assert bound in {0, best}, case
            cut += bound < best
    assert cut > 40


@pytest.mark.parametrize(
    ("size", "groups", "nodes", "per_node", "slots"),
    [(1, 4, 2, 1, 4), (2, 4, 2, 2, 12), (1, 6, 2, 2, 8), (1, 6, 3, 2, 12), (2, 4, 2, 1, 8), (3, 4, 2, 2, 14), (1, 8, 4, 2, 12)],
)  # fmt: skip
def test_no_assignment_of_groups_is_cooler(
    size: int, groups: int, nodes: int, per_node: int, slots: int
) -> None:
    # 7 counts of 60 loads each, against all assignments and all placements on every node.
    rng = np.random.default_rng([65, size, groups, slots])
    loads = np.array([draw(KINDS[i % len(KINDS)], size * groups, rng) for i in range(60)])
    result = plan(
        loads,
        ep_size=nodes * per_node,
        num_physical_experts=slots,
        num_groups=groups,
        num_nodes=nodes,
        tolerance=1e-9,
        allow_uneven=True,
    )
    capacity = result.placement.slots_per_rank[:per_node].tolist()
    room, sums = groups // nodes, loads.reshape(len(loads), groups, size)
    cost = {
        chosen: coolest(room * size, capacity, sums[:, chosen].reshape(len(loads), -1))
        for chosen in combinations(range(groups), room)
    }
    best = np.full(len(loads), np.inf)
    for node_of in product(range(nodes), repeat=groups):
        parts = [tuple(g for g in range(groups) if node_of[g] == node) for node in range(nodes)]
        if all(part in cost for part in parts):
            best = np.minimum(best, np.max([cost[part] for part in parts], axis=0))
    assert (result.lower_bound <= best * (1 + 1e-12)).all()
    np.testing.assert_allclose(result.max_rank_load, best, rtol=3e-9)
    np.testing.assert_allclose(result.lower_bound, best, rtol=3e-9)


def test_the_example_of_deepseek_is_planned_as_cool_as_can_be() -> None:
    # From the page of DeepSeek EPLB: 12 experts in 4 groups, 16 slots of 8 ranks on 2 nodes. Its own plan carries 156.5 or more.
    load = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    counts: dict[str, Any] = {"ep_size": 8, "num_physical_experts": 16, "num_groups": 4, "num_nodes": 2}
    result = plan(load, **counts)
    assert result.max_rank_load.tolist() == [151, 179.5]
    assert result.gap.max() <= 2e-9
    assert (plan(load, **counts, policy="deepseek").max_rank_load >= result.max_rank_load).all()


COUNTS = [
    {"ep_size": 144, "num_physical_experts": 288},
    {"ep_size": 32, "num_physical_experts": 288},
    {"ep_size": 100, "num_physical_experts": 300},
    {"ep_size": 32, "num_physical_experts": 288, "num_groups": 8, "num_nodes": 4},
]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("tolerance", [0.01, 4e-4, 1e-4])
def test_the_plan_is_the_same_and_the_bound_no_lower_with_a_certificate(
    counts: dict[str, Any], tolerance: float
) -> None:
    load = np.random.default_rng(66).lognormal(sigma=0.85, size=(3, 256))
    cheap, dear = (plan(load, **counts, tolerance=tolerance, certify=certify) for certify in (False, True))
    assert cheap.placement == dear.placement
    assert (cheap.lower_bound <= dear.lower_bound).all()
    assert (dear.lower_bound <= dear.max_rank_load * (1 + 1e-9)).all()
    if counts["ep_size"] == 144 and tolerance < 0.005:
        assert (cheap.lower_bound < dear.lower_bound).all()
        assert dear.gap.mean() < 0.01


def test_small_plans_are_the_same_with_a_certificate_too() -> None:
    raised = 0
    for seed in range(60):
        rng = np.random.default_rng([67, seed])
        experts, ranks = int(rng.integers(8, 20)), int(rng.integers(4, 9))
        counts: dict[str, Any] = {"ep_size": ranks, "num_physical_experts": experts + 4, "allow_uneven": True}
        load = rng.lognormal(sigma=1.2, size=(2, experts))
        cheap, dear = (plan(load, **counts, certify=certify) for certify in (False, True))
        assert cheap.placement == dear.placement
        assert (cheap.lower_bound <= dear.lower_bound).all()
        raised += int((cheap.lower_bound < dear.lower_bound).sum())
    assert raised > 5


def test_only_balanced_certifies() -> None:
    with pytest.raises(LayoutError, match="certify is True; expected none with policy 'deepseek'"):
        plan([[1, 2, 3, 4]], ep_size=2, policy="deepseek", certify=True)
