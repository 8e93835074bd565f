# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import DTYPES, normal

from vllm_ascend_moe.ops import npu_moe_gating_top_k

SHAPES = [
    (8, 1, 1, 2),
    (8, 1, 1, 8),
    (5, 1, 1, 1),
    (16, 4, 2, 4),
    (16, 4, 4, 5),
    (64, 8, 3, 6),
    (12, 4, 1, 3),
]

BOTH = pytest.mark.parametrize(
    "op", [npu_moe_gating_top_k.twin, npu_moe_gating_top_k.fast], ids=["twin", "fast"]
)


def naive(
    x: torch.Tensor,
    k: int,
    bias: torch.Tensor | None,
    k_group: int,
    group_count: int,
    mode: int,
    renorm: int,
    norm_type: int,
    scaling: float,
) -> tuple[list[list[float]], list[list[int]]]:
    weights, ids = [], []
    for row in x.float():
        scores = (row.sigmoid() if norm_type else row.softmax(0)).tolist()
        added = (
            [s + b for s, b in zip(scores, bias.float().tolist(), strict=True)]
            if bias is not None
            else scores
        )
        size = len(scores) // group_count
        groups = [sorted(added[g * size : (g + 1) * size], reverse=True) for g in range(group_count)]
        group_score = (
            [group[0] if mode == 0 else group[0] + group[1] for group in groups] if group_count > 1 else [0]
        )
        kept = sorted(range(group_count), key=lambda g: -group_score[g])[:k_group]
        allowed = [expert for expert in range(len(scores)) if expert // size in kept]
        best = sorted(allowed, key=lambda expert: -added[expert])[:k]
        chosen = [scores[expert] for expert in best]
        total = sum(chosen) if norm_type or renorm else 1
        weights.append([weight / total * scaling for weight in chosen])
        ids.append(best)
    return weights, ids


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 9),
    st.sampled_from(SHAPES),
    st.booleans(),
    st.integers(0, 1),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([1.0, 2.5]),
    st.sampled_from(DTYPES),
    st.sampled_from([npu_moe_gating_top_k.twin, npu_moe_gating_top_k.fast]),
    st.integers(0, 2**32),
)
def test_it_is_the_obvious_loop(
    tokens: int,
    shape: tuple[int, int, int, int],
    biased: bool,
    mode: int,
    renorm: int,
    norm_type: int,
    scaling: float,
    dtype: torch.dtype,
    implementation: Any,  # noqa: ANN401 - the op's
    seed: int,
) -> None:
    experts, group_count, k_group, k = shape
    # Steps of 1/16 are exact in every dtype; no two logits of a token are the same.
    order = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    x = ((order - experts / 2) / 16).to(dtype)
    bias = normal(experts, seed=seed + 1, dtype=dtype) if biased else None
    weights, ids, scores = implementation(
        x,
        k,
        bias=bias,
        k_group=k_group,
        group_count=group_count,
        group_select_mode=mode,
        renorm=renorm,
        norm_type=norm_type,
        out_flag=True,
        routed_scaling_factor=scaling,
    )
    assert (weights.dtype, ids.dtype, scores.dtype) == (dtype, torch.int32, torch.float32)
    assert tuple(weights.shape) == tuple(ids.shape) == (tokens, k)
    assert tuple(scores.shape) == (tokens, experts)
    wanted, wanted_ids = naive(x, k, bias, k_group, group_count, mode, renorm, norm_type, scaling)
    assert ids.tolist() == wanted_ids
    torch.testing.assert_close(
        weights,
        torch.tensor(wanted).reshape(tokens, k).to(dtype),
        rtol=1e-2 if dtype != torch.float32 else 1e-5,
        atol=1e-6,
    )


@BOTH
def test_experts_of_dropped_groups_are_never_chosen_even_below_zero(op: Any) -> None:  # noqa: ANN401
    # All scores of the kept group are negative by their bias: a mask of 0 would prefer the other group.
    bias = torch.tensor([-9.0, -9, -9, -9, -20, -20, -20, -20])
    _, ids, _ = op(
        torch.zeros(1, 8), 3, bias=bias, k_group=1, group_count=2, group_select_mode=1, norm_type=1
    )
    assert set(ids[0].tolist()) < {0, 1, 2, 3}


@BOTH
def test_the_two_group_scores_differ(op: Any) -> None:  # noqa: ANN401
    logits = torch.tensor([[3.0, 0, 0, 2.5, 2.5, 0]])
    best = [op(logits, 1, k_group=1, group_count=2, group_select_mode=m)[1].item() for m in (0, 1)]
    assert best[0] == 0
    assert best[1] in {3, 4}


@BOTH
@pytest.mark.parametrize(("name", "value"), [("norm_type", 2), ("group_select_mode", -1)])
def test_modes_that_do_not_exist_are_refused(op: Any, name: str, value: int) -> None:  # noqa: ANN401
    modes: dict[str, Any] = {"norm_type": 0, "group_select_mode": 0, name: value}
    with pytest.raises(ValueError, match=f"npu_moe_gating_top_k: {name} is {value}; expected 0"):
        op(torch.zeros(1, 8), 1, **modes)


@BOTH
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
def test_whatever_the_logits_the_ids_are_different_experts(op: Any, value: float) -> None:  # noqa: ANN401
    logits = torch.full((3, 12), value)
    logits[1, 4] = 1.0
    logits[2] = 0.0
    for bias in (None, torch.zeros(12)):
        _, ids, _ = op(logits, 4, bias=bias, k_group=2, group_count=3, group_select_mode=1)
        assert all(len(set(row)) == 4 and set(row) <= set(range(12)) for row in ids.tolist())


def test_of_equal_scores_the_kernel_takes_the_lower_id() -> None:
    _, ids, _ = npu_moe_gating_top_k(torch.tensor([[1.0, 2, 2, 1, 2, 1]]), 5)
    assert ids.tolist() == [[1, 2, 4, 0, 3]]


def test_the_kernel_refuses_more_experts_than_the_groups_hold() -> None:
    # It does not check its indices: what reaches it has been checked.
    for k, groups, kept in ((5, 4, 1), (9, 1, 1), (2, 3, 1)):
        with pytest.raises(
            ValueError, match=f"npu_moe_gating_top_k: k is {k}; expected {groups} equal groups of 8"
        ):
            npu_moe_gating_top_k(torch.zeros(1, 8), k, group_count=groups, k_group=kept)


def test_many_threads_take_the_twin_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(600, 32, seed=0, dtype=torch.bfloat16)
    for bias, norm_type, renorm in ((None, 0, 0), (None, 0, 1), (normal(32, seed=1), 1, 0)):
        kernel = npu_moe_gating_top_k(x, 4, bias=bias, norm_type=norm_type, renorm=renorm, out_flag=True)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: 64)
            many = npu_moe_gating_top_k(x, 4, bias=bias, norm_type=norm_type, renorm=renorm, out_flag=True)
        # Logits of few bits tie, and ties are taken in another order: the weights are the same all the same.
        torch.testing.assert_close(many[0], kernel[0], atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(many[2], kernel[2], atol=1e-6, rtol=1e-5)


def test_gradients_and_strides_do_not_matter() -> None:
    x = normal(8, 20, seed=3).t()
    assert not x.is_contiguous()
    wanted = npu_moe_gating_top_k.twin(x, 3)
    found = npu_moe_gating_top_k(x.clone(memory_format=torch.preserve_format).requires_grad_(), 3)
    torch.testing.assert_close(found[0], wanted[0], atol=1e-6, rtol=1e-6)
    assert torch.equal(found[1], wanted[1])
