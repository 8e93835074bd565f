# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import TOLERANCE, LargestOutput, choose, normal
from torch.nn import functional

from expert_maps import LayoutName, generate_placement
from vllm_ascend_moe.npu_ops import ops, packed
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts
from vllm_ascend_moe.npu_ops.ops import map_to_physical

HIDDEN, INNER = 12, 10


def layer(experts: int, seed: int) -> ExpertWeights:
    return ExpertWeights(
        normal(experts, HIDDEN, 2 * INNER, seed=seed) / 3, normal(experts, INNER, HIDDEN, seed=seed + 1) / 3
    )


def part(weights: ExpertWeights, own: Any) -> ExpertWeights:  # noqa: ANN401 - an index
    return ExpertWeights(weights.w13[own], weights.w2[own])


def naive(
    hidden: torch.Tensor, probs: torch.Tensor, ids: torch.Tensor, weights: ExpertWeights
) -> torch.Tensor:
    output = torch.zeros(hidden.shape, dtype=torch.float64)
    for token, k in np.ndindex(*ids.shape):
        expert = ids[token, k]
        if expert >= 0:
            gate, up = (hidden[token].double() @ weights.w13[expert].double()).chunk(2)
            output[token] += probs[token, k] * ((functional.silu(gate) * up) @ weights.w2[expert].double())
    return output


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(4, 9),
    st.integers(1, 4),
    st.sampled_from(list(TOLERANCE)),
    st.integers(0, 2**32),
)
def test_it_is_the_obvious_loop(tokens: int, experts: int, k: int, dtype: torch.dtype, seed: int) -> None:
    hidden, probs = normal(tokens, HIDDEN, seed=seed, dtype=dtype), torch.rand(tokens, k)
    ids = choose(tokens, k, experts, seed)
    ids[torch.rand(tokens, k) < 0.2] = -1
    exact = layer(experts, seed)
    weights = ExpertWeights(exact.w13.to(dtype), exact.w2.to(dtype))
    found = apply_experts(hidden, probs, ids, weights)
    assert found.dtype == dtype
    wanted = naive(hidden, probs, ids, weights)
    torch.testing.assert_close(found.double(), wanted, atol=10 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 9),
    st.integers(4, 11),
    st.integers(1, 5),
    st.sampled_from(["linear", "round_robin"]),
    st.integers(0, 2**32),
)
def test_ranks_with_a_logical_expert_map_add_up(
    tokens: int, experts: int, ranks: int, layout: LayoutName, seed: int
) -> None:
    ranks = min(ranks, experts)
    hidden, probs, ids = (
        normal(tokens, HIDDEN, seed=seed),
        torch.rand(tokens, 3),
        choose(tokens, 3, experts, seed),
    )
    weights = layer(experts, seed)
    placement = generate_placement(layout, num_experts=experts, ep_size=ranks)
    total = torch.zeros_like(hidden)
    for rank in range(ranks):
        own = torch.from_numpy(placement.local_experts(0, rank).copy()).long()
        expert_map = torch.from_numpy(placement.expert_map(0, rank).copy())
        total += apply_experts(hidden, probs, ids, part(weights, own), expert_map=expert_map)
    torch.testing.assert_close(total, apply_experts(hidden, probs, ids, weights), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2), st.booleans(), st.integers(0, 2**32))
def test_ranks_with_physical_ids_and_redundant_experts_add_up(
    tokens: int, ranks: int, extra: int, turns: bool, seed: int
) -> None:
    experts = 4 * ranks
    hidden, probs, ids = (
        normal(tokens, HIDDEN, seed=seed),
        torch.rand(tokens, 3),
        choose(tokens, 3, experts, seed),
    )
    weights = layer(experts, seed)
    redundant = extra * ranks if ranks > 1 else 0
    placement = generate_placement(
        "ring", num_experts=experts, ep_size=ranks, num_redundant_experts=redundant
    )
    # All ranks see all tokens, so they use one table.
    table = torch.from_numpy((placement.routing_table(0, 0) if turns else placement.log2phy(0, 0)).copy())
    physical = map_to_physical(ids, table)
    total = torch.zeros_like(hidden)
    for rank in range(ranks):
        own = torch.from_numpy(placement.local_experts(0, rank).copy()).long()
        total += apply_experts(hidden, probs, physical, part(weights, own), first_physical=rank * len(own))
    torch.testing.assert_close(total, apply_experts(hidden, probs, ids, weights), atol=1e-5, rtol=1e-5)


def test_a_token_without_a_local_expert_gets_exact_zeros_and_undefined_rows_do_not_leak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    op = ops.npu_moe_init_routing_v2

    def poisoned(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the op's
        rows, row_idx, counts, scale = op(*args, **kwargs)
        rows[int(counts.sum()) :] = torch.nan
        return rows, row_idx, counts, scale

    matmul = ops.npu_grouped_matmul

    def poisoned_matmul(x: Any, weight: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the op's
        (product,) = matmul(x, weight, **kwargs)
        product[int(kwargs["group_list"].sum()) :] = torch.nan
        return [product]

    monkeypatch.setattr(ops, "npu_moe_init_routing_v2", poisoned)
    monkeypatch.setattr(ops, "npu_grouped_matmul", poisoned_matmul)
    weights = layer(2, 0)
    ids = torch.tensor([[0, 5], [4, 5], [-1, 1], [-1, -1]], dtype=torch.int32)
    hidden, probs = normal(4, HIDDEN, seed=1), torch.rand(4, 2)
    found = apply_experts(hidden, probs, ids, weights, first_physical=0)
    local = torch.where(ids < 2, ids, -1)
    torch.testing.assert_close(found.double(), naive(hidden, probs, local, weights), atol=1e-5, rtol=1e-5)
    assert not found[[1, 3]].any()
    assert not apply_experts(hidden, probs, torch.full_like(ids, 9), weights).any()


def test_one_slot_is_not_given_as_a_list_of_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch_npu documents that a list of counts is longer than one.
    seen = []
    op = ops.npu_grouped_matmul

    def watching(x: Any, weight: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the op's
        seen.append((len(kwargs["group_list"]), kwargs["group_list_type"]))
        return op(x, weight, **kwargs)

    monkeypatch.setattr(ops, "npu_grouped_matmul", watching)
    hidden, probs = normal(5, HIDDEN, seed=1), torch.rand(5, 1)
    for slots in (1, 2):
        ids = choose(5, 1, slots, 0)
        torch.testing.assert_close(
            apply_experts(hidden, probs, ids, layer(slots, 0)).double(),
            naive(hidden, probs, ids, layer(slots, 0)),
            atol=1e-5,
            rtol=1e-5,
        )
    assert seen == [(1, 0)] * 2 + [(2, 1)] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_w8a8_is_close_to_the_float_layer(dtype: torch.dtype) -> None:
    weights, hidden, probs, ids = (
        layer(8, 3),
        normal(60, HIDDEN, seed=4),
        torch.rand(60, 3),
        choose(60, 3, 8, 5),
    )
    scales = [w.abs().amax(1) / 127 for w in (weights.w13, weights.w2)]
    int8 = [
        (w / s[:, None]).round().to(torch.int8)
        for w, s in zip((weights.w13, weights.w2), scales, strict=True)
    ]
    quantised = ExpertWeights(*int8, *scales)
    found = apply_experts(hidden.to(dtype), probs, ids, quantised)
    assert found.dtype == dtype
    wanted = apply_experts(hidden, probs, ids, weights)
    assert (found.float() - wanted).norm() / wanted.norm() < 0.03
    halves = [ExpertWeights(*(t[own] for t in (*int8, *scales))) for own in (slice(0, 4), slice(4, 8))]
    total = sum(
        apply_experts(hidden.to(dtype), probs, ids, half, first_physical=4 * i).float()
        for i, half in enumerate(halves)
    )
    assert (total - found.float()).norm() / wanted.norm() < 0.01


def test_only_the_rows_that_the_ops_return_are_as_large_as_tokens_by_k() -> None:
    tokens, k, hidden, inner = 40, 4, 64, 16
    weights = ExpertWeights(normal(6, hidden, 2 * inner, seed=0), normal(6, inner, hidden, seed=1))
    with LargestOutput() as watch:
        apply_experts(normal(tokens, hidden, seed=2), torch.rand(tokens, k), choose(tokens, k, 6, 0), weights)
    assert watch.elements == tokens * k * hidden


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"w2": torch.zeros(2, 4, 4)},
            r"w2 has shape \[2, 4, 4\]; expected \[2, 3, 4\] beside w13 \[2, 4, 6\]",
        ),
        (
            {"w2": torch.zeros(2, 3, 4).half()},
            r"w13 is torch\.float32 .* w2 torch\.float16; expected one dtype",
        ),
        (
            {"w13_scale": torch.ones(2, 6)},
            r"scales are given, but the weights are torch\.float32; expected int8",
        ),
        ({"w13": torch.zeros(2, 4, 6).char(), "w2": torch.zeros(2, 3, 4).char()}, "w13_scale has shape None"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes: dict[str, torch.Tensor], message: str) -> None:
    given_ = {"w13": torch.zeros(2, 4, 6), "w2": torch.zeros(2, 3, 4), **changes}
    with pytest.raises(ValueError, match=message):
        ExpertWeights(**given_)


def test_without_vllms_kernel_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it, see `tests_vllm/test_vllm_experts.py`."""
    monkeypatch.setattr(packed, "_functions", lambda: None)
    packed._works.cache_clear()
    assert packed.pack_experts(torch.ones(2, 64, 64), torch.ones(2, 32, 64)) is None
    packed._works.cache_clear()
