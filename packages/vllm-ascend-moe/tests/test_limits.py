# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
import torch

from vllm_ascend_moe.npu_ops import limits
from vllm_ascend_moe.npu_ops.experts import ExpertWeights
from vllm_ascend_moe.npu_ops.limits import LimitError
from vllm_ascend_moe.npu_ops.routing import RoutingConfig


@pytest.mark.parametrize(
    "counts",
    [(1, 1, 1, 1), (2048, 2048, 1, 1), (256, 8, 8, 4), (384, 8, 1, 1), (160, 6, 8, 3), (12, 12, 4, 4)],
)
def test_real_models_and_the_limits_themselves_are_taken(counts: tuple[int, int, int, int]) -> None:
    limits.check_gating(*counts)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((2049, 8, 1, 1), "num_experts is 2049; expected 1 … 2048"),
        ((0, 1, 1, 1), "num_experts is 0"),
        ((256, 8, 0, 1), "group_count is 0; expected at least 1"),
        ((256, 8, 7, 1), "group_count is 7; expected a divisor of num_experts (256)"),
        ((16, 4, 8, 4), "experts per group is 2; expected at least 3"),
        ((300, 4, 75, 4), "group_count x experts per group, aligned to 32, is 2400; expected at most 2048"),
        ((256, 8, 8, 9), "k_group is 9; expected 1 … 8"),
        ((256, 8, 8, 0), "k_group is 0; expected 1 … 8"),
        ((256, 200, 8, 4), "top_k is 200; expected 1 … 128 (k_group x experts per group)"),
        ((256, 0, 8, 4), "top_k is 0"),
    ],
)
def test_a_router_past_a_limit_is_refused_when_it_is_made(
    counts: tuple[int, int, int, int], message: str
) -> None:
    experts, top_k, group_count, k_group = counts
    with pytest.raises(LimitError, match=re.escape(f"npu_moe_gating_top_k: {message}")):
        RoutingConfig(experts, top_k, num_expert_group=group_count, topk_group=k_group)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 8, 64, 32), "npu_moe_init_routing_v2: num_local_experts is 0; expected 1 … 10239"),
        ((10240, 8, 64, 32), "npu_moe_init_routing_v2: num_local_experts is 10240"),
        ((8, 513, 64, 32), "npu_moe_token_unpermute: top_k is 513; expected 1 … 512"),
        ((8, 8, 65536, 32), "npu_grouped_matmul: hidden_size is 65536; expected 1 … 65535"),
        ((8, 8, 64, 32768), "npu_grouped_matmul: 2 x intermediate_size is 65536"),
    ],
)
def test_experts_past_a_limit_are_refused(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(LimitError, match=re.escape(message)):
        limits.check_experts(*sizes, torch.bfloat16)


def test_dtypes_are_limited_too() -> None:
    weights = ExpertWeights(torch.zeros(2, 4, 6), torch.zeros(2, 3, 4))
    weights.check_limits(2, torch.float32)
    with pytest.raises(LimitError, match=r"npu_grouped_matmul: dtype is torch\.float64"):
        weights.check_limits(2, torch.float64)
    int8 = ExpertWeights(weights.w13.char(), weights.w2.char(), torch.ones(2, 6), torch.ones(2, 4))
    int8.check_limits(2, torch.bfloat16)
    with pytest.raises(
        LimitError, match=r"dtype with int8 weights is torch\.float32; expected float16 or bfloat16"
    ):
        int8.check_limits(2, torch.float32)
