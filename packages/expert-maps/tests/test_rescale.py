# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Plans for the ranks that are left, or for more of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from balanced_cases import nodes_of_group, realistic_load
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from strategies import Counts, counts, loads, random_slots

from expert_maps import LayoutError, LoadError, Placement, moves, plan, rescale


def held_by(before: Placement, layer: int, kept: list[int]) -> list[set[int]]:
    return [set(before.local_experts(layer, rank).tolist()) for rank in kept]


def least_arrivals(held: list[set[int]], room: list[int], num_experts: int) -> int:
    """Return how many slots must receive an expert that their rank does not hold, at least.

    As many different experts stay as can be matched to the slots of ranks that hold them; further copies may stay
    while they leave enough slots for the experts that could not.
    """
    owner = [rank for rank in range(len(held)) for _ in range(room[rank])]
    fits = np.array([[expert in held[rank] for rank in owner] for expert in range(num_experts)], dtype=int)
    matched = int((maximum_bipartite_matching(csr_matrix(fits), perm_type="column") >= 0).sum())
    full = sum(min(len(experts), slots) for experts, slots in zip(held, room, strict=False))
    return sum(room) - min(full, matched + sum(room) - num_experts)


@st.composite
def failures(draw: st.DrawFn) -> tuple[Counts, int, list[int]]:
    drawn = draw(counts(max_layers=2))
    failed = draw(st.lists(st.integers(0, drawn.ep_size - 1), unique=True, max_size=drawn.ep_size - 1))
    return drawn, draw(st.integers(0, 2**31)), failed


@settings(deadline=None)
@given(failures(), st.integers(0, 3), st.integers(0, 2))
def test_every_expert_survives_and_no_more_moves_than_must(
    drawn: tuple[Counts, int, list[int]], more_ranks: int, more_slots: int
) -> None:
    shape, seed, failed = drawn
    before = Placement(random_slots(shape, seed), shape.ep_size, num_logical_experts=shape.num_experts)
    load = loads(shape, seed + 1, "lognormal")
    kept = [rank for rank in range(shape.ep_size) if rank not in failed]
    ranks, old_room = len(kept) + more_ranks, shape.num_physical // shape.ep_size
    room = max(min(old_room + more_slots, shape.num_experts), -(-shape.num_experts // ranks))
    result = rescale(before, load, ep_size=ranks, failed_ranks=failed, num_physical_experts=room * ranks)
    after, moved = result.placement, result.moves
    assert moved is not None
    assert (after.replica_count >= 1).all()
    assert after.slots_per_rank.tolist() == [room] * ranks
    assert (result.lower_bound <= result.max_rank_load * (1 + 1e-9)).all()
    for layer in range(shape.num_layers):
        held = held_by(before, layer, kept)
        lost = set(range(shape.num_experts)) - set().union(*held)
        arrived = int(moved.fetched[layer].sum())
        # No rank has fewer slots than before, so this is the plain rule.
        assert arrived == max(len(lost), room * ranks - old_room * len(kept))
        assert arrived == least_arrivals(held, [room] * ranks, shape.num_experts)
        for new, old in enumerate(kept):
            stays = before.local_experts(layer, old)
            slots = after.local_experts(layer, new)[: len(stays)]
            start = after.rank_offsets[new]
            changed = moved.changed[layer, start : start + len(stays)]
            np.testing.assert_array_equal(changed, slots != stays)
            # What stays has kept its slot.
            assert not set(slots[changed].tolist()) & set(stays.tolist())
        assert moved.changed[layer].sum() == arrived


@settings(deadline=None)
@given(failures(), st.data())
def test_fewer_slots_and_ranks_lose_no_expert(
    drawn: tuple[Counts, int, list[int]], data: st.DataObject
) -> None:
    shape, seed, failed = drawn
    before = Placement(random_slots(shape, seed), shape.ep_size, num_logical_experts=shape.num_experts)
    load = loads(shape, seed + 1, "lognormal")
    kept = [rank for rank in range(shape.ep_size) if rank not in failed]
    ranks = data.draw(st.integers(1, len(kept)))
    slots = data.draw(st.integers(shape.num_experts, ranks * shape.num_experts))
    result = rescale(
        before, load, ep_size=ranks, failed_ranks=failed, num_physical_experts=slots, allow_uneven=True
    )
    assert result.moves is not None
    room = result.placement.slots_per_rank.tolist()
    for layer in range(shape.num_layers):
        least = least_arrivals(held_by(before, layer, kept[:ranks]), room, shape.num_experts)
        arrived = int(result.moves.fetched[layer].sum())
        assert arrived == least


def test_a_failed_rank_costs_only_what_it_alone_held() -> None:
    load = realistic_load(6, 256)
    before = plan(load, num_physical_experts=320, ep_size=32).placement
    result = rescale(before, load, failed_ranks=[5, 17])
    assert result.placement.ep_size == 30
    assert result.placement.num_physical_experts == 300
    kept = [rank for rank in range(32) if rank not in {5, 17}]
    assert result.moves is not None
    for layer in range(6):
        lost = 256 - len(set().union(*held_by(before, layer, kept)))
        assert result.moves.fetched[layer].sum() == lost
    assert result.moves.bytes(7) == 7 * result.moves.fetched.sum()
    anew = plan(load, num_physical_experts=300, ep_size=30)
    better = rescale(before, load, failed_ranks=[5, 17], max_moves=20)
    unlimited = rescale(before, load, failed_ranks=[5, 17], max_moves=None)
    assert better.moves is not None
    assert (better.moves.fetched.sum(axis=1) <= result.moves.fetched.sum(axis=1) + 20).all()
    assert better.max_rank_load.sum() < result.max_rank_load.sum()
    assert unlimited.gap.mean() <= max(anew.gap.mean(), 0.0004)


def test_more_ranks_receive_only_what_fills_them() -> None:
    load = realistic_load(4, 64)
    before = plan(load, num_physical_experts=80, ep_size=16).placement
    result = rescale(before, load, ep_size=20)
    assert result.placement.slots_per_rank.tolist() == [5] * 20
    np.testing.assert_array_equal(result.placement.physical_to_logical[:, :80], before.physical_to_logical)
    assert result.moves is not None
    assert result.moves.fetched.sum(axis=1).tolist() == [20] * 4
    assert result.moves.changed[:, 80:].all()
    assert (result.max_rank_load <= plan(load, num_physical_experts=80, ep_size=16).max_rank_load).all()


def test_fewer_ranks_give_up_the_last_ones() -> None:
    load = realistic_load(2, 16)
    before = plan(load, num_physical_experts=32, ep_size=4).placement
    result = rescale(before, load, ep_size=3)
    other = rescale(before, load, failed_ranks=[3])
    assert result.placement == other.placement
    assert result.placement.num_physical_experts == 24


def test_the_same_ranks_stay_as_they_are() -> None:
    load = realistic_load(2, 16)
    before = plan(load, num_physical_experts=20, ep_size=4).placement
    other = np.ones((2, 16))
    result = rescale(before, other)
    assert result.placement == before
    assert result.moves is not None
    assert not result.moves.changed.any()
    with_budget = rescale(before, other, max_moves=3)
    assert (
        with_budget.placement
        == plan(other, num_physical_experts=20, ep_size=4, current=before, max_moves=3).placement
    )
    assert with_budget.moves is not None
    wanted = moves(before, with_budget.placement)
    np.testing.assert_array_equal(with_budget.moves.changed, wanted.changed)
    np.testing.assert_array_equal(with_budget.moves.fetched, wanted.fetched)


def test_a_rescale_that_changes_nothing_moves_nothing_also_where_ranks_are_uneven() -> None:
    rows = [[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]
    before = Placement(rows, 3, num_logical_experts=6, slots_per_rank=[2, 5, 1], allow_uneven=True)
    load = np.random.default_rng(0).lognormal(size=(2, 6))
    result = rescale(before, load, allow_uneven=True)
    assert result.placement == before
    assert result.moves is not None
    assert not result.moves.changed.any()
    assert result.rank_load.shape == (2, 3)
    assert (result.lower_bound <= result.max_rank_load * (1 + 1e-9)).all()
    # With a budget, or fewer ranks, slots are as plans give them.
    for options in ({"max_moves": 1}, {"failed_ranks": [2], "num_physical_experts": 8}):
        changed = rescale(before, load, allow_uneven=True, **options).placement.slots_per_rank
        assert changed.max() - changed.min() <= 1


def test_what_breaks_the_rules_is_put_right_though_nothing_changes() -> None:
    before = Placement(
        [[0, 1, 2, 3, 0, 0, 2, 3]], 4, slots_per_rank=[1, 3, 2, 2], allow_uneven=True, allow_duplicates=True
    )
    after = rescale(before, np.ones((1, 4)), allow_uneven=True).placement
    assert (after.replica_count == 2).all()


def test_certify_seeks_more_bounds_for_the_same_plan() -> None:
    load = realistic_load(4, 24)
    before = plan(load, num_physical_experts=32, ep_size=16).placement
    options: dict[str, Any] = {"ep_size": 12, "num_physical_experts": 24, "max_moves": None}
    cheap = rescale(before, load, **options)
    dear = rescale(before, load, certify=True, **options)
    assert cheap.placement == dear.placement
    assert (dear.lower_bound >= cheap.lower_bound).all()
    assert dear.lower_bound.sum() > cheap.lower_bound.sum()


def test_many_layers_are_searched_less_and_equal_calls_give_equal_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = np.random.default_rng(0).lognormal(sigma=2, size=(2, 128))
    before = plan(load, num_physical_experts=512, ep_size=32).placement
    whole, again = (rescale(before, load, ep_size=28, num_physical_experts=448) for _ in range(2))
    assert whole.placement == again.placement
    monkeypatch.setattr("expert_maps.elastic._EFFORT", 2000)
    less = rescale(before, load, ep_size=28, num_physical_experts=448)
    assert less.max_rank_load.sum() > whole.max_rank_load.sum()
    assert less.moves is not None
    assert whole.moves is not None
    assert less.moves.num_fetched == whole.moves.num_fetched


def test_groups_stay_on_their_nodes() -> None:
    load = realistic_load(3, 32)
    grouped: dict[str, Any] = {"num_groups": 4, "num_nodes": 2}
    before = plan(load, num_physical_experts=40, ep_size=4, **grouped).placement
    result = rescale(before, load, num_physical_experts=48, **grouped)
    for layer in range(3):
        for group in range(4):
            home = nodes_of_group(result.placement, layer, group, 4, 2)
            assert home == nodes_of_group(before, layer, group, 4, 2)
    assert result.moves is not None
    assert result.moves.fetched.sum(axis=1).tolist() == [8] * 3


def test_steps_of_load_are_planned_for_too() -> None:
    trace = np.random.default_rng(0).lognormal(size=(5, 2, 16))
    before = plan(trace, num_physical_experts=20, ep_size=4).placement
    result = rescale(before, trace, failed_ranks=[0], num_physical_experts=18)
    assert result.moves is not None
    kept = [1, 2, 3]
    for layer in range(2):
        lost = 16 - len(set().union(*held_by(before, layer, kept)))
        assert result.moves.fetched[layer].sum() == max(lost, 3)


BEFORE = Placement([[0, 1, 2, 3, 4, 5, 6, 7]] * 2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failed_ranks": [0, 1, 2, 3]}, "failed_ranks are all 4; expected at least one rank that is left"),
        ({"failed_ranks": [4]}, "failed rank is 4; expected one of 0 … 3"),
        ({"failed_ranks": 3}, "failed_ranks is 3; expected several ranks"),
        ({"failed_ranks": "3"}, "failed_ranks is '3'; expected several ranks"),
        ({"failed_ranks": [-1]}, "failed rank is -1; expected one of 0 … 3"),
        (
            {"failed_ranks": [1]},
            "ep_size is 3 with 2 slots a rank, 6 in all; expected at least 8.* 9 or more",
        ),
        ({"ep_size": 0}, "ep_size is 0"),
        ({"ep_size": 3, "num_physical_experts": 8}, "multiple of ep_size 3, the nearest: 9"),
        ({"ep_size": 5, "num_physical_experts": 5}, "num_physical_experts is 5; expected 8 … 40"),
        ({"max_moves": -1}, "max_moves is -1"),
        ({"tolerance": 0}, "tolerance is 0"),
        ({"num_nodes": 3}, "num_nodes is 3; expected a divisor of ep_size 4"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        rescale(BEFORE, np.ones((2, 8)), **options)


def test_a_load_of_other_counts_is_refused() -> None:
    with pytest.raises(LoadError, match="load has 2 layers and 7 experts; expected 2 and 8"):
        rescale(BEFORE, np.ones((2, 7)))
    with pytest.raises(LoadError, match="load at layer 1, expert 2 is nan"):
        rescale(BEFORE, np.where(np.arange(16).reshape(2, 8) == 10, np.nan, 1.0))
