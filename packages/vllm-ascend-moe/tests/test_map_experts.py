# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import LargestOutput

from expert_maps import generate_placement
from vllm_ascend_moe.npu_ops.ops import map_to_physical, take_turns


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 20),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(0, 100),
    st.sampled_from([torch.int32, torch.int64]),
    st.integers(0, 2**32),
)
def test_it_is_the_obvious_loop(
    tokens: int, k: int, experts: int, rows: int, offset: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts, (tokens, k), generator=generator).to(dtype)
    table = torch.randint(0, 50, (rows, experts), generator=generator).to(torch.int32)
    found = map_to_physical(ids, table, token_offset=offset)
    assert found.dtype == dtype
    wanted = [
        [-1 if e < 0 else table[(t + offset) % rows, e].item() for e in row]
        for t, row in enumerate(ids.tolist())
    ]
    assert found.tolist() == wanted


def test_a_log2phy_is_a_table_of_one_row() -> None:
    assert map_to_physical(torch.tensor([[0, 2], [-1, 1]]), torch.tensor([7, 8, 9])).tolist() == [
        [7, 9],
        [-1, 8],
    ]


def test_nothing_larger_than_the_ids_is_written() -> None:
    with LargestOutput() as watch:
        map_to_physical(torch.zeros(100, 8, dtype=torch.int32), torch.zeros(4, 16, dtype=torch.int32))
    assert watch.elements <= 800


# By turns


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 20),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 7),
    st.sampled_from([torch.int32, torch.int64]),
    st.integers(0, 2**32),
)
def test_turns_are_the_obvious_loop(
    tokens: int, k: int, experts: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts, (tokens, k), generator=generator).to(dtype)
    slots = torch.randint(0, 50, (experts, width), generator=generator)
    count = torch.randint(1, width + 1, (experts,), generator=generator)
    slots[torch.arange(width) >= count.unsqueeze(1)] = -1
    found = take_turns(ids, slots, count)
    assert found.dtype == dtype
    wanted = [
        [-1 if e < 0 else slots[e, t % count[e]].item() for e in row] for t, row in enumerate(ids.tolist())
    ]
    assert found.tolist() == wanted


def test_turns_over_the_copies_are_the_table_of_rank_0() -> None:
    placement = generate_placement("ring", num_experts=8, ep_size=4, num_redundant_experts=8)
    ids = torch.randint(-1, 8, (30, 3), generator=torch.Generator().manual_seed(0))
    slots = torch.from_numpy(placement.logical_to_physical[0].copy()).long()
    count = torch.from_numpy(placement.replica_count[0].copy()).long()
    table = torch.from_numpy(placement.routing_table(0, 0).copy())
    assert torch.equal(take_turns(ids, slots, count), map_to_physical(ids, table))


def test_an_expert_without_slots_is_sent_nowhere() -> None:
    # vLLM's tables have such rows before they are filled; a count of 0 is not divided by.
    found = take_turns(torch.tensor([[0], [0], [1]]), torch.tensor([[-1, -1], [4, 5]]), torch.tensor([0, 2]))
    assert found.tolist() == [[-1], [-1], [4]]


def test_turns_leave_what_they_are_given() -> None:
    ids, slots, count = torch.tensor([[-1, 1]]), torch.tensor([[3], [4]]), torch.tensor([1, 1])
    assert take_turns(ids, slots, count).tolist() == [[-1, 4]]
    assert (ids.tolist(), slots.tolist(), count.tolist()) == ([[-1, 1]], [[3], [4]], [1, 1])


def test_turns_write_nothing_larger_than_the_ids() -> None:
    with LargestOutput() as watch:
        take_turns(
            torch.zeros(100, 8, dtype=torch.int32),
            torch.zeros(16, 40, dtype=torch.int64),
            torch.ones(16, dtype=torch.int64),
        )
    assert watch.elements <= 800
