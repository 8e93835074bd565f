# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import DTYPES, normal

from vllm_ascend_moe.npu_ops.ops import npu_moe_gating_top_k

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


@BOTH
def test_of_equal_scores_the_lower_id_comes_first(op: Any) -> None:  # noqa: ANN401
    _, ids, _ = op(torch.tensor([[1.0, 2, 2, 1, 2, 1]]), 5)
    assert ids.tolist() == [[1, 2, 4, 0, 3]]
    assert op(torch.zeros(1, 4), 1)[1].item() == 0


@BOTH
@pytest.mark.parametrize("mode", [0, 1])
def test_of_equal_groups_the_lower_one_is_kept(op: Any, mode: int) -> None:  # noqa: ANN401
    _, ids, _ = op(torch.zeros(2, 12), 5, k_group=2, group_count=4, group_select_mode=mode)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] * 2


@BOTH
def test_logits_whose_scores_are_equal_are_equal(op: Any) -> None:  # noqa: ANN401
    # Both of these softmax to 0, and both sigmoids are 1.
    assert op(torch.tensor([[-300.0, -200.0, 0.0]]), 3)[1].tolist() == [[2, 0, 1]]
    assert op(torch.tensor([[0.0, 40.0, 50.0]]), 3, norm_type=1)[1].tolist() == [[1, 2, 0]]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.sampled_from([(33, 1, 1, 5), (64, 8, 3, 8), (128, 4, 2, 16), (12, 4, 1, 3)]),
    st.booleans(),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
def test_twin_and_kernel_choose_the_same_also_where_logits_tie(
    tokens: int,
    shape: tuple[int, int, int, int],
    biased: bool,
    mode: int,
    norm_type: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    experts, group_count, k_group, k = shape
    x = (normal(tokens, experts, seed=seed) * 4).round().div(4).to(dtype)
    bias = normal(experts, seed=seed + 1).round().to(dtype) if biased else None
    implementations: list[Any] = [npu_moe_gating_top_k.twin, npu_moe_gating_top_k.fast]
    twin, kernel = (
        op(
            x,
            k,
            bias=bias,
            group_count=group_count,
            k_group=k_group,
            group_select_mode=mode,
            norm_type=norm_type,
        )[1]
        for op in implementations
    )
    assert torch.equal(twin, kernel)


@BOTH
def test_more_experts_than_the_groups_hold_are_refused(op: Any) -> None:  # noqa: ANN401
    # The kernel does not check its indices: what reaches it has been checked.
    for k, groups, kept in ((5, 4, 1), (9, 1, 1), (2, 3, 1)):
        with pytest.raises(
            ValueError, match=f"npu_moe_gating_top_k: k is {k}; expected {groups} equal groups of 8"
        ):
            op(torch.zeros(1, 8), k, group_count=groups, k_group=kept)


def test_neither_the_number_of_threads_nor_of_tokens_changes_what_a_token_gets() -> None:
    # An odd number of experts: rows begin anywhere in a vector register.
    x = normal(701, 33, seed=0, dtype=torch.bfloat16)
    bias, before = normal(33, seed=1).mul(4).round(), torch.get_num_threads()
    for norm_type in (0, 1):
        for op in (npu_moe_gating_top_k, npu_moe_gating_top_k.twin):
            alone = torch.cat([op(row[None], 7, bias=bias, norm_type=norm_type)[1] for row in x])
            try:
                for threads in (1, 5):
                    torch.set_num_threads(threads)
                    assert torch.equal(op(x, 7, bias=bias, norm_type=norm_type)[1], alone)
            finally:
                torch.set_num_threads(before)


def test_scores_that_are_not_asked_for_are_undefined_in_the_twin() -> None:
    assert npu_moe_gating_top_k.twin(torch.zeros(2, 4), 1)[2].isnan().all()


def test_gradients_and_strides_do_not_matter() -> None:
    x = normal(8, 20, seed=3).t()
    assert not x.is_contiguous()
    wanted = npu_moe_gating_top_k.twin(x, 3)
    found = npu_moe_gating_top_k(x.clone(memory_format=torch.preserve_format).requires_grad_(), 3)
    torch.testing.assert_close(found[0], wanted[0], atol=1e-6, rtol=1e-6)
    assert torch.equal(found[1], wanted[1])
