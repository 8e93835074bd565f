# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules of migrations: by a replay of their own, and beside the best there can be where all can be tried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Counts, counts, random_slots

from expert_maps import ExpertMapsError, Placement, moves, plan
from expert_maps.migration import Schedule, schedule


def replay(found: Schedule) -> None:
    """Carry a schedule out slot by slot, and hold each step to the rules."""
    before, after = found.before, found.after
    rank, size = before.slot_rank, before.ep_size // found.num_nodes
    now = before.physical_to_logical.copy()
    transfers = list(zip(found.round, found.layer, found.expert, found.source, found.target, strict=True))
    assert (np.diff(found.round) >= 0).all()
    for number in range(found.num_rounds):
        old = now.copy()
        here = [transfer[1:] for transfer in transfers if transfer[0] == number]
        assert here
        senders = [rank[source] for _, _, source, _ in here]
        receivers = [rank[target] for _, _, _, target in here]
        assert len(set(senders)) == len(senders)
        assert len(set(receivers)) == len(receivers)
        for layer, expert, source, target in here:
            assert old[layer, source] == expert
            holders = set(rank[old[layer] == expert].tolist())
            assert rank[target] not in holders
            near = {holder for holder in holders if holder // size == rank[target] // size}
            assert rank[source] in (near or holders)
            now[layer, target] = expert
        assert all(len(set(row)) == before.num_logical_experts for row in now.tolist())
    old = now.copy()
    for layer, source, target in found.local:
        assert rank[source] == rank[target]
        now[layer, target] = old[layer, source]
    np.testing.assert_array_equal(now, after.physical_to_logical)


def holders_of(placement: Placement, nodes: int) -> set[tuple[int, int, int]]:
    """Return what each node holds: layer, node, expert."""
    size = placement.ep_size // nodes
    layers, slots = np.indices(placement.physical_to_logical.shape)
    node = placement.slot_rank[slots] // size
    cells = zip(layers.ravel(), node.ravel(), placement.physical_to_logical.ravel(), strict=True)
    return {(int(layer), int(where), int(expert)) for layer, where, expert in cells}


def assert_good(found: Schedule) -> None:
    replay(found)
    old, new = (holders_of(one, found.before.ep_size) for one in (found.before, found.after))
    assert found.num_transfers == len(new - old)
    old, new = (holders_of(one, found.num_nodes) for one in (found.before, found.after))
    assert found.between_nodes.sum() == len(new - old)
    assert found.num_rounds >= found.lower_bound


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Placement, Placement, int]:
    drawn: Counts = draw(counts(max_layers=3))
    seed = draw(st.integers(0, 2**31))
    one, other = (
        Placement(random_slots(drawn, seed + more), drawn.ep_size, num_logical_experts=drawn.num_experts)
        for more in (0, 1)
    )
    nodes = draw(st.sampled_from([n for n in range(1, drawn.ep_size + 1) if drawn.ep_size % n == 0]))
    return one, other, nodes


@settings(deadline=None, max_examples=150)
@given(pairs())
def test_every_state_serves_and_the_end_is_the_other_placement(
    drawn: tuple[Placement, Placement, int],
) -> None:
    before, after, nodes = drawn
    found = schedule(before, after, num_nodes=nodes)
    assert_good(found)
    assert found == schedule(before, after, num_nodes=nodes)
    *_, last = found.states()
    np.testing.assert_array_equal(last, after.physical_to_logical)


def shuffled(rng: np.random.Generator, layers: int, experts: int, ranks: int, room: int) -> Placement:
    """Return any placement at all, also with an expert twice on a rank."""
    rows = [
        rng.permutation(
            np.concatenate([np.arange(experts), rng.integers(0, experts, ranks * room - experts)])
        )
        for _ in range(layers)
    ]
    return Placement(rows, ranks, num_logical_experts=experts, allow_duplicates=True)


def test_thousands_of_random_pairs_and_how_near_the_bound_they_are() -> None:
    rng = np.random.default_rng(0)
    rounds = bound = 0
    for _ in range(600):
        ranks, room, layers = rng.integers(1, [7, 5, 4]).tolist()
        experts = int(rng.integers(1, ranks * room + 1))
        one, other = (shuffled(rng, layers, experts, ranks, room) for _ in range(2))
        nodes = rng.choice([n for n in range(1, ranks + 1) if ranks % n == 0])
        found = schedule(one, other, num_nodes=int(nodes))
        assert_good(found)
        rounds, bound = rounds + found.num_rounds, bound + found.lower_bound
    assert rounds <= 1.1 * bound


def test_swaps_without_a_copy_to_spare_form_cycles() -> None:
    before = Placement([[0, 1, 2, 3, 4, 5]], 3)
    found = schedule(before, Placement([[2, 3, 4, 5, 0, 1]], 3))
    assert (found.num_rounds, found.lower_bound, found.num_transfers) == (2, 2, 6)
    assert_good(found)
    # A cycle that would come to a rank twice: the ranks swap twice, and one puts its slots in order.
    found = schedule(Placement([[0, 1, 2, 3]], 2), Placement([[3, 2, 0, 1]], 2))
    assert found.num_rounds == 2
    assert_good(found)


def test_what_is_on_the_rank_already_is_not_sent() -> None:
    found = schedule(Placement([[0, 1, 2, 3]], 2), Placement([[1, 0, 3, 2]], 2))
    assert (found.num_rounds, found.num_transfers, len(found.local)) == (0, 0, 4)
    assert_good(found)
    nothing = schedule(found.before, found.before)
    assert (nothing.num_rounds, len(nothing.local), nothing.lower_bound) == (0, 0, 0)
    (state,) = nothing.states()
    np.testing.assert_array_equal(state, found.before.physical_to_logical)


def test_slots_of_unequal_ranks_and_ranks_without_any() -> None:
    one, other = (
        Placement([row], 3, slots_per_rank=[3, 0, 2], allow_uneven=True)
        for row in ([0, 1, 2, 3, 4], [3, 4, 0, 1, 2])
    )
    found = schedule(one, other)
    assert_good(found)
    assert set(found.source_rank.tolist()) == {0, 2}


def contents(placement: Placement) -> tuple[frozenset[int], ...]:
    """Return what each rank holds."""
    rows = placement.physical_to_logical.reshape(placement.ep_size, -1).tolist()
    return tuple(frozenset(row) for row in rows)


def reached_from(state: tuple[frozenset[int], ...], everything: set[int]) -> set[tuple[frozenset[int], ...]]:
    """Return what one round leads to, by trying everything: what ranks send, receive and give up, needed or not."""
    ranks = range(len(state))
    choices = [
        [(None, state[rank])]
        + [
            (sender, state[rank] - {out} | {expert})
            for sender in ranks
            if sender != rank
            for expert in state[sender] - state[rank]
            for out in state[rank]
        ]
        for rank in ranks
    ]
    found = set()
    for chosen in itertools.product(*choices):
        senders = [sender for sender, _ in chosen if sender is not None]
        held = tuple(after for _, after in chosen)
        if len(set(senders)) == len(senders) and set().union(*held) == everything:
            found.add(held)
    return found


def test_nearly_all_tiny_cases_take_as_few_rounds_as_can_be() -> None:
    """Three ranks of two slots, without an expert twice on a rank, so that a rank is the set of what it holds."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        experts = int(rng.integers(3, 7))
        one, other = (
            Placement(random_slots(Counts(1, experts, 3, 6), int(seed)), 3, num_logical_experts=experts)
            for seed in rng.integers(0, 2**31, 2)
        )
        found = schedule(one, other)
        states = {contents(one)}
        if found.num_rounds == found.lower_bound:
            continue
        for _ in range(found.num_rounds - 1):
            states = set().union(*(reached_from(state, set(range(experts))) for state in states))
        missed += contents(other) in states
    assert missed <= 6


def test_a_node_gets_an_expert_once_and_hands_it_on() -> None:
    before, after = Placement([[0, 1, 2, 3, 4, 5, 4, 5]], 4), Placement([[0, 1, 2, 3, 0, 5, 4, 0]], 4)
    near = schedule(before, after, num_nodes=2)
    assert_good(near)
    assert (near.num_transfers, near.between_nodes.tolist()) == (2, [True, False])
    # Three ranks hold it in the end: of one copy two rounds make no more than four.
    assert (near.num_rounds, near.lower_bound) == (2, 2)
    assert not schedule(before, after).between_nodes.any()


def test_bytes_and_seconds() -> None:
    found = schedule(Placement([[0, 1, 2, 3]], 2), Placement([[3, 2, 0, 1]], 2))
    assert found.bytes(10) == 40
    assert found.seconds(10**9, 25) == pytest.approx(2 / 25)
    assert found.summary() == (
        f"2 rounds (no schedule has fewer than 2): 4 experts sent to another rank, {len(found.local)} copied within one"
    )
    assert repr(found).startswith("Schedule(rounds=2, lower_bound=2, transfers=4")
    with pytest.raises(ExpertMapsError, match="bandwidth is 0; expected a number of GB/s above 0"):
        found.seconds(10, 0)
    with pytest.raises(ExpertMapsError, match="expert_bytes is -1"):
        found.bytes(-1)


def test_what_cannot_be_scheduled_is_named() -> None:
    before = Placement([[0, 1, 2, 3]], 2)
    with pytest.raises(ExpertMapsError, match="ep_size differs: 2 before, 4 after"):
        schedule(before, Placement([[0, 1, 2, 3]], 4))
    with pytest.raises(ExpertMapsError, match="num_nodes is 3; expected a divisor of ep_size 2"):
        schedule(before, before, num_nodes=3)


def test_large_ones_are_near_the_bound() -> None:
    loads = np.random.default_rng(2).lognormal(size=(2, 8, 64))
    one, other = (plan(load, num_physical_experts=80, ep_size=16) for load in loads)
    for nodes in (1, 4):
        found = schedule(one, other, num_nodes=nodes)
        assert_good(found)
        assert found.num_transfers == moves(one, other).num_fetched
        assert found.num_rounds <= 1.12 * found.lower_bound
