# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`AscendExperts`: vLLM's modular experts over the Ascend ops. Importing this module loads vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.model_executor.layers.fused_moe import modular_kernel as mk
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    kInt8DynamicTokenSym,
    kInt8StaticChannelSym,
)
from vllm.platforms import current_platform

from vllm_ascend_moe.npu_ops import limits
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.config import (
        FusedMoEConfig,
        FusedMoEParallelConfig,
        FusedMoEQuantConfig,
    )
    from vllm.model_executor.layers.quantization.utils.quant_utils import QuantKey

_SCHEMES = {(None, None), (kInt8StaticChannelSym, kInt8DynamicTokenSym)}


class AscendExperts(mk.FusedMoEExpertsModular):  # type: ignore[misc] # vLLM is not installed where types are checked
    """One rank's experts, unquantised or W8A8 with a scale a token, for gated SiLU layers.

    vLLM's weights are [slots, out, in]; the ops read them transposed, as views.
    """

    def __init__(self, moe_config: FusedMoEConfig, quant_config: FusedMoEQuantConfig) -> None:
        """Check the layer against the ops' documented limits.

        Raises:
            LimitError: a limit is passed; before there are tokens.
            ValueError: the layer has biases, which these experts do not add.
        """
        super().__init__(moe_config, quant_config)
        if moe_config.has_bias:
            msg = "the layer's experts have biases; expected none, AscendExperts does not add them"
            raise ValueError(msg)
        limits.check_experts(
            moe_config.num_local_experts,
            moe_config.experts_per_token,
            moe_config.hidden_dim,
            moe_config.intermediate_size_per_partition,
            moe_config.in_dtype,
        )
        if quant_config.quant_dtype == torch.int8:
            limits.check_quantised(moe_config.in_dtype)

    @property
    def expects_unquantized_inputs(self) -> bool:
        """Rows are quantised while they are sorted."""
        return True

    @staticmethod
    def activation_format() -> mk.FusedMoEActivationFormat:
        """Rows by token, as the router sees them."""
        return mk.FusedMoEActivationFormat.Standard

    @staticmethod
    def _supports_current_device() -> bool:
        return current_platform.is_cpu() or current_platform.device_type == "npu"

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return False

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return (weight_key, activation_key) in _SCHEMES

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return activation == MoEActivation.SILU

    @staticmethod
    def _supports_parallel_config(moe_parallel_config: FusedMoEParallelConfig) -> bool:  # noqa: ARG004 - vLLM's signature
        return True

    def workspace_shapes(
        self,
        M: int,  # noqa: N803 - vLLM's names
        N: int,  # noqa: ARG002, N803
        K: int,  # noqa: N803
        topk: int,  # noqa: ARG002
        global_num_experts: int,  # noqa: ARG002
        local_num_experts: int,  # noqa: ARG002
        expert_tokens_meta: mk.ExpertTokensMetadata | None,  # noqa: ARG002
        activation: MoEActivation,  # noqa: ARG002
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """No workspaces: the ops allocate what they return."""
        return (0,), (0,), (M, K)

    def finalize_weight_and_reduce_impl(self) -> mk.TopKWeightAndReduce:
        """Nothing is left to weigh or add."""
        return TopKWeightAndReduceNoOP()

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,  # noqa: ARG002 - vLLM's signature
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        a2_scale: torch.Tensor | None,  # noqa: ARG002
        workspace13: torch.Tensor,  # noqa: ARG002
        workspace2: torch.Tensor,  # noqa: ARG002
        expert_tokens_meta: mk.ExpertTokensMetadata | None,  # noqa: ARG002
        apply_router_weight_on_input: bool,  # noqa: FBT001
    ) -> None:
        """Write this rank's contribution to ``output`` [T, H].

        Args:
            output: [T, H], written.
            hidden_states: [T, H].
            w1: [slots, 2·I, H].
            w2: [slots, H, I].
            topk_weights: float32 [T, K].
            topk_ids: [T, K]; without EPLB logical ids, with EPLB physical ones.
            activation: SILU.
            global_num_experts: unused.
            expert_map: id → local slot, −1 on another rank, over the same ids; None where all are here.
            a1q_scale: None: the input is not quantised.
            a2_scale: unused.
            workspace13: unused.
            workspace2: unused.
            expert_tokens_meta: unused.
            apply_router_weight_on_input: whether vLLM has weighed the input already (K = 1).

        Raises:
            ValueError: another activation, or a quantised input.
        """
        if activation != MoEActivation.SILU or a1q_scale is not None:
            found = activation.value if a1q_scale is None else "a quantised input"
            msg = f"AscendExperts was given {found}; expected silu and an unquantised input"
            raise ValueError(msg)
        scales = [None if scale is None else scale.flatten(1) for scale in (self.w1_scale, self.w2_scale)]
        weights = ExpertWeights(w1.transpose(1, 2), w2.transpose(1, 2), *scales)
        if apply_router_weight_on_input:
            topk_weights = torch.ones_like(topk_weights)
        output.copy_(apply_experts(hidden_states, topk_weights, topk_ids, weights, expert_map=expert_map))
