# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_maps import LAYOUT_NAMES, LayoutError, PlacementError, generate_placement


@given(st.integers(1, 60), st.integers(1, 16))
def test_linear_and_round_robin_split_as_vllm_does(num_experts: int, ep_size: int) -> None:
    base, extra = divmod(num_experts, ep_size)
    linear = generate_placement("linear", num_experts=num_experts, ep_size=ep_size)
    dealt = generate_placement("round_robin", num_experts=num_experts, ep_size=ep_size)
    for rank in range(ep_size):
        size = base + (rank < extra)
        start = rank * base + min(rank, extra)
        assert linear.local_experts(0, rank).tolist() == list(range(start, start + size))
        assert dealt.local_experts(0, rank).tolist() == list(range(rank, num_experts, ep_size))


@given(st.integers(1, 60), st.integers(1, 16))
def test_ring_and_append_without_redundancy_are_linear(num_experts: int, ep_size: int) -> None:
    linear = generate_placement("linear", num_experts=num_experts, ep_size=ep_size)
    for layout in ("ring", "append"):
        assert generate_placement(layout, num_experts=num_experts, ep_size=ep_size) == linear


@given(st.data())
def test_ring_equals_a_plain_loop(data: st.DataObject) -> None:
    ep_size = data.draw(st.integers(2, 12))
    num_experts = data.draw(st.integers(ep_size, 40))
    slots = data.draw(st.integers(-(-num_experts // ep_size), num_experts))
    redundant = slots * ep_size - num_experts
    ranks = [list(map(int, part)) for part in np.array_split(np.arange(num_experts), ep_size)]
    for copy in range(redundant):
        rank = ranks[ep_size - 1 - copy % ep_size]
        rank.append((rank[-1] + 1) % num_experts)
    placement = generate_placement(
        "ring", num_experts=num_experts, ep_size=ep_size, num_redundant_experts=redundant, num_layers=2
    )
    for layer in range(2):
        assert [placement.local_experts(layer, rank).tolist() for rank in range(ep_size)] == ranks
    assert placement.num_redundant_experts == redundant


def test_the_last_rank_indexes_experts_that_exist() -> None:
    placement = generate_placement("ring", num_experts=256, ep_size=16, num_redundant_experts=16)
    wanted = np.full(256, -1)
    wanted[240:] = np.arange(16)
    wanted[0] = 16
    np.testing.assert_array_equal(placement.expert_map(0, 15), wanted)


def test_ring_goes_round_again() -> None:
    placement = generate_placement("ring", num_experts=4, ep_size=2, num_redundant_experts=4)
    assert placement.physical_to_logical.tolist() == [[0, 1, 2, 3, 2, 3, 0, 1]]


def test_ring_with_more_ranks_than_experts_spreads_the_copies() -> None:
    placement = generate_placement("ring", num_experts=8, ep_size=16, num_redundant_experts=8)
    assert placement.replica_count.tolist() == [[2] * 8]


def test_append_is_all_experts_then_copies_in_turn() -> None:
    placement = generate_placement("append", num_experts=5, ep_size=4, num_redundant_experts=7)
    assert placement.physical_to_logical.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]]
    with pytest.raises(PlacementError, match="stands twice"):
        generate_placement("append", num_experts=4, ep_size=2, num_redundant_experts=8)
    twice = generate_placement(
        "append", num_experts=4, ep_size=2, num_redundant_experts=8, allow_duplicates=True
    )
    assert twice.local_experts(0, 0).tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_shared_experts_take_the_last_slot_of_each_rank(layout: str) -> None:
    plain = generate_placement(layout, num_experts=10, ep_size=4)
    mixed = generate_placement(layout, num_experts=10, ep_size=4, num_shared_experts=2)
    assert mixed.num_logical_experts == 12
    for rank in range(4):
        wanted = [*plain.local_experts(0, rank).tolist(), 10 + rank % 2]
        assert mixed.local_experts(0, rank).tolist() == wanted


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_every_rank_may_hold_all_shared_experts(layout: str) -> None:
    plain = generate_placement(layout, num_experts=8, ep_size=2)
    mixed = generate_placement(
        layout, num_experts=8, ep_size=2, num_shared_experts=3, shared_on_every_rank=True
    )
    assert (mixed.num_logical_experts, mixed.is_even) == (11, True)
    for rank in range(2):
        assert mixed.local_experts(0, rank).tolist() == [*plain.local_experts(0, rank).tolist(), 8, 9, 10]
    assert mixed.replica_count[0, 8:].tolist() == [2, 2, 2]


def test_redundancy_that_does_not_divide_names_the_nearest_that_does() -> None:
    for layout in ("ring", "append"):
        with pytest.raises(LayoutError, match="nearest that work: 0 and 16"):
            generate_placement(layout, num_experts=256, ep_size=16, num_redundant_experts=5)
        with pytest.raises(LayoutError, match="nearest that work: 6 and 10"):
            generate_placement(layout, num_experts=10, ep_size=4, num_redundant_experts=9)
        with pytest.raises(LayoutError, match=r"nearest that work: 2$"):
            generate_placement(layout, num_experts=10, ep_size=4, num_redundant_experts=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": {}}, "layout is {}; expected one of linear, round_robin, ring, append"),
        ({"layout": "spiral"}, "layout is 'spiral'; expected one of linear, round_robin, ring, append"),
        ({"num_experts": 0}, "num_experts is 0; expected at least 1"),
        ({"ep_size": 0}, "ep_size is 0"),
        ({"num_redundant_experts": -1}, "num_redundant_experts is -1"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_shared_experts": 5}, "num_shared_experts is 5; expected at most ep_size, 4"),
        ({"shared_on_every_rank": True}, "num_shared_experts is 0 with shared_on_every_rank"),
        ({"layout": "linear", "num_redundant_experts": 4}, "layout 'linear' takes 0"),
        ({"layout": "round_robin", "num_redundant_experts": 4}, "layout 'round_robin' takes 0"),
        ({"num_experts": "8"}, "num_experts is '8'; expected an integer"),
    ],
)
def test_wrong_counts_are_named(arguments: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"num_experts": 8, "ep_size": 4} | arguments
    with pytest.raises(LayoutError, match=message):
        generate_placement(**options)  # type: ignore[arg-type]


def test_ring_beyond_one_copy_on_every_rank_is_refused() -> None:
    with pytest.raises(PlacementError, match="stands twice"):
        generate_placement("ring", num_experts=4, ep_size=2, num_redundant_experts=6)
