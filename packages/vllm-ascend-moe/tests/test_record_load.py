# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ascend_moe.npu_ops.ops import record_load


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 20),
    st.integers(1, 4),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(0, 25)),
    st.sampled_from([torch.int32, torch.int64]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_it_counts_what_is_not_padding(
    tokens: int, k: int, experts: int, valid: int | None, dtype: torch.dtype, as_tensor: bool, seed: int
) -> None:
    ids = torch.randint(-1, experts, (tokens, k), generator=torch.Generator().manual_seed(seed)).to(dtype)
    load = torch.arange(experts).to(dtype)
    bound = torch.tensor(valid) if as_tensor and valid is not None else valid
    record_load(load, ids, num_tokens=bound)
    counted = Counter(e for row in ids[: tokens if valid is None else valid].tolist() for e in row)
    assert load.tolist() == [expert + counted[expert] for expert in range(experts)]


@pytest.mark.parametrize("garbage", [9999, -5])
def test_padding_may_hold_anything(garbage: int) -> None:
    load = torch.zeros(3, dtype=torch.int64)
    record_load(load, torch.tensor([[0, 1], [garbage, garbage]]), num_tokens=1)
    assert load.tolist() == [1, 1, 0]
