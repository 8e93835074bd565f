# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import LargestOutput

from vllm_ascend_moe.ops import map_to_physical


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
