# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import DTYPES, TOLERANCE, LargestOutput, normal

from vllm_ascend_moe.npu_ops.ops import npu_moe_token_unpermute


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(1, 5),
    st.sampled_from(DTYPES),
    st.sampled_from([torch.int32, torch.int64]),
    st.sampled_from([npu_moe_token_unpermute.twin, npu_moe_token_unpermute.fast]),
    st.integers(0, 2**32),
)
def test_it_is_the_weighted_sum_of_each_tokens_rows(
    tokens: int,
    k: int,
    dtype: torch.dtype,
    index: torch.dtype,
    implementation: Any,  # noqa: ANN401 - the op's
    seed: int,
) -> None:
    rows = normal(tokens * k + 1, 6, seed=seed, dtype=dtype)
    where = torch.randint(0, len(rows), (tokens * k,), generator=torch.Generator().manual_seed(seed)).to(
        index
    )
    probs = normal(tokens, k, seed=seed + 1, dtype=dtype)
    found = implementation(rows, where, probs)
    assert found.dtype == dtype
    assert tuple(found.shape) == (tokens, 6)
    for token in range(tokens):
        wanted = sum(
            (rows[where[token * k + i]].double() * probs[token, i].double() for i in range(k)),
            torch.zeros(6).double(),
        )
        torch.testing.assert_close(
            found[token].double(), wanted, atol=3 * TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


def test_without_weights_rows_are_only_moved() -> None:
    rows = normal(3, 2, seed=0)
    assert torch.equal(npu_moe_token_unpermute.twin(rows, torch.tensor([2, 0, 1])), rows[[2, 0, 1]])


def test_nothing_of_tokens_by_k_by_hidden_is_written() -> None:
    tokens, k, hidden = 50, 8, 64
    rows, probs = normal(20, hidden, seed=0), normal(tokens, k, seed=1)
    with LargestOutput() as watch:
        npu_moe_token_unpermute(rows, torch.zeros(tokens * k, dtype=torch.int32), probs)
    assert watch.elements == tokens * hidden


def test_padded_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="npu_moe_token_unpermute: padded_mode is True; expected False"):
        npu_moe_token_unpermute.twin(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int32), None, True)


@pytest.mark.parametrize(
    "op", [npu_moe_token_unpermute.twin, npu_moe_token_unpermute.fast], ids=["twin", "fast"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_rounds_once(op: Any, dtype: torch.dtype) -> None:  # noqa: ANN401
    tokens, top_k, width = 300, 8, 16
    rows, probs = (
        normal(tokens * top_k, width, seed=0, dtype=dtype),
        torch.full((tokens, top_k), 0.125, dtype=dtype),
    )
    found = op(rows, torch.arange(tokens * top_k), probs)
    exact = (rows.double() * 0.125).view(tokens, top_k, width).sum(1)
    if dtype == torch.float32:
        torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=1e-6)
    else:
        # Through float32, whose own rounding seldom decides.
        assert (found == exact.float().to(dtype)).float().mean() > 0.999


def test_rows_of_weight_0_are_not_read_by_the_twin() -> None:
    rows = torch.tensor([[torch.nan, torch.inf], [1.0, 2.0]])
    found = npu_moe_token_unpermute.twin(rows, torch.tensor([0, 1]), torch.tensor([[0.0, 0.5]]))
    assert found.tolist() == [[0.5, 1.0]]
