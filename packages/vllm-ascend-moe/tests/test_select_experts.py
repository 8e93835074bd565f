# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import normal

from vllm_ascend_moe.npu_ops.routing import RoutingConfig, ScoringFunc, select_experts


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 9),
    st.sampled_from(["softmax", "sigmoid"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 2.5]),
    st.integers(0, 2**32),
)
def test_weights_are_scores_as_the_model_asks(
    tokens: int, scoring: ScoringFunc, renormalize: bool, biased: bool, scaling: float, seed: int
) -> None:
    logits = normal(tokens, 16, seed=seed)
    bias = normal(16, seed=seed + 1) if biased else None
    weights, ids = select_experts(logits, RoutingConfig(16, 4, scoring, renormalize, 1, 1, scaling), bias)
    assert weights.dtype == torch.float32
    assert ids.dtype == torch.int32
    scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    best = (scores if bias is None else scores + bias).topk(4).indices
    assert torch.equal(ids.long(), best)
    wanted = scores.gather(1, best)
    wanted = wanted / wanted.sum(-1, keepdim=True) if renormalize else wanted
    torch.testing.assert_close(weights, wanted * scaling, atol=1e-6, rtol=1e-6)


def test_a_groups_score_is_its_best_without_a_bias_and_the_sum_of_two_with_one() -> None:
    logits = torch.tensor([[3.0, -9, -9, 2.5, 2.5, -9]])
    config = RoutingConfig(6, 1, "sigmoid", True, 2, 1)
    assert select_experts(logits, config)[1].item() == 0
    assert select_experts(logits, config, torch.zeros(6))[1].item() in {3, 4}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    logits = normal(7, 16, seed=1, dtype=dtype)
    config = RoutingConfig(16, 4, "sigmoid")
    for half, full in zip(
        select_experts(logits, config), select_experts(logits.float(), config), strict=True
    ):
        assert torch.equal(half, full)


def test_an_unknown_scoring_is_refused() -> None:
    with pytest.raises(ValueError, match="scoring_func is 'relu'; expected 'softmax' or 'sigmoid'"):
        RoutingConfig(8, 2, "relu")  # type: ignore[arg-type]


def test_softmax_over_the_chosen_alone_tells_logits_apart_that_a_whole_softmax_does_not() -> None:
    """The first two have the same softmax in float32; the second is larger even so, as vLLM's choice says too."""
    pytest.importorskip("numba")
    logits = torch.tensor([[1e-9, 2e-9, -1.0, -2.0]])
    assert logits.softmax(-1)[0, 0] == logits.softmax(-1)[0, 1]
    weights, ids = select_experts(logits, RoutingConfig(4, 1))
    assert ids.tolist() == [[1]]
    assert weights.tolist() == [[1.0]]


@pytest.mark.parametrize("tokens", [1, 40])
def test_groups_of_a_softmax_are_kept_by_their_best_expert(tokens: int) -> None:
    logits = normal(tokens, 24, seed=5)
    weights, ids = select_experts(logits, RoutingConfig(24, 3, "softmax", True, 4, 2, 2.5))
    scores = logits.double().softmax(-1)
    kept = scores.view(tokens, 4, 6).amax(-1).topk(2).indices
    outside = ~(torch.arange(24)[None, :, None] // 6 == kept[:, None, :]).any(-1)
    wanted, best = scores.masked_fill(outside, -1).topk(3)
    assert torch.equal(ids.long(), best)
    wanted = 2.5 * wanted / wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(weights.double(), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_seen(value: float) -> None:
    """As in a softmax: a NaN, or an infinite largest logit, leaves a token's weights NaN, and no other token's."""
    logits = normal(3, 16, seed=2)
    logits[1] = value if value < 0 else logits[1]
    logits[1, 5] = value
    weights, ids = select_experts(logits, RoutingConfig(16, 4))
    assert weights.isnan().all(1).tolist() == [False, True, False]
    assert all(len(set(row)) == 4 and min(row) >= 0 and max(row) < 16 for row in ids.tolist())
