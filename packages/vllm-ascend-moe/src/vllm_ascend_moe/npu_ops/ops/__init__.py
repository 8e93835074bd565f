# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The ops of the MoE layer, one in a file: torch_npu's signatures; off the NPU plain-torch twins and kernels."""

from __future__ import annotations

from vllm_ascend_moe.npu_ops.ops._op import OPS, Op, can_use_kernel, registered_ops, twins_only
from vllm_ascend_moe.npu_ops.ops.dynamic_quant import npu_dynamic_quant
from vllm_ascend_moe.npu_ops.ops.gating_top_k import npu_moe_gating_top_k
from vllm_ascend_moe.npu_ops.ops.grouped_matmul import npu_grouped_matmul
from vllm_ascend_moe.npu_ops.ops.init_routing import npu_moe_init_routing_v2
from vllm_ascend_moe.npu_ops.ops.map_and_record import map_and_record, take_turns_and_record
from vllm_ascend_moe.npu_ops.ops.map_experts import map_to_physical, take_turns
from vllm_ascend_moe.npu_ops.ops.record_load import record_load
from vllm_ascend_moe.npu_ops.ops.swiglu import npu_swiglu
from vllm_ascend_moe.npu_ops.ops.token_unpermute import npu_moe_token_unpermute

__all__ = [
    "OPS",
    "Op",
    "can_use_kernel",
    "map_and_record",
    "map_to_physical",
    "npu_dynamic_quant",
    "npu_grouped_matmul",
    "npu_moe_gating_top_k",
    "npu_moe_init_routing_v2",
    "npu_moe_token_unpermute",
    "npu_swiglu",
    "record_load",
    "registered_ops",
    "take_turns",
    "take_turns_and_record",
    "twins_only",
]
