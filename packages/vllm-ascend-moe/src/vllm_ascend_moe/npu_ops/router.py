# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`AscendRouter`: vLLM's router interface over the Ascend routing ops. Importing this module loads vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.model_executor.layers.fused_moe.config import get_routing_method_type
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.v1.worker.ubatching import dbo_current_ubatch_id

from vllm_ascend_moe.npu_ops.ops import map_and_record, take_turns_and_record
from vllm_ascend_moe.npu_ops.routing import RoutingConfig, select_experts

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from vllm.distributed.eplb.eplb_state import EplbLayerState
    from vllm.model_executor.layers.fused_moe.config import RoutingMethodType


class AscendRouter(BaseRouter):  # type: ignore[misc] # vLLM is not installed where types are checked
    """Scores by `npu_moe_gating_top_k`, then replicas and load by plain torch, on any device.

    vLLM's own mapping from logical to physical experts does nothing outside CUDA, ROCm and XPU: ids go
    through unmapped and no load is recorded. This router does both everywhere.

    Attributes:
        config: the model's routing.
        routing_table: int32 [rows, E], this layer's and rank's replica choice (see
            `vllm_ascend_moe.core.replicas`); None to take replicas in turn by token, the same on every rank,
            from vLLM's own EPLB state. It must be replaced when experts move.
        map_and_record: called instead of both, with the parameters of vLLM's
            `eplb_map_to_physical_and_record`; None for what is described above.
    """

    def __init__(
        self,
        config: RoutingConfig,
        *,
        e_score_correction_bias: torch.Tensor | None = None,
        eplb_state: EplbLayerState | None = None,
        routing_table: torch.Tensor | None = None,
        map_and_record: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        """Make a layer's router.

        Args:
            config: the model's routing.
            e_score_correction_bias: [E].
            eplb_state: vLLM's; None without EPLB.
            routing_table: see the class.
            map_and_record: see the class.
        """
        super().__init__(top_k=config.top_k, global_num_experts=config.num_experts, eplb_state=eplb_state)
        self.config = config
        self.e_score_correction_bias = e_score_correction_bias
        self.routing_table = routing_table
        self.map_and_record = map_and_record

    @property
    def routing_method_type(self) -> RoutingMethodType:
        """The routing's name in vLLM."""
        return get_routing_method_type(
            scoring_func=self.config.scoring_func,
            top_k=self.config.top_k,
            renormalize=self.config.renormalize,
            num_expert_group=self.config.num_expert_group if self.config.num_expert_group > 1 else None,
            has_e_score_bias=self.e_score_correction_bias is not None,
        )

    def _compute_routing(
        self,
        hidden_states: torch.Tensor,  # noqa: ARG002 - vLLM's signature
        router_logits: torch.Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: torch.Tensor | None = None,  # noqa: ARG002 - as above
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = select_experts(router_logits, self.config, self.e_score_correction_bias)
        return weights, ids if indices_type is None else ids.to(indices_type)

    def _apply_eplb_mapping(self, topk_ids: torch.Tensor) -> torch.Tensor:
        state = self.eplb_state
        if state is None:
            return topk_ids
        tokens = state.num_unpadded_tokens_tensors[dbo_current_ubatch_id()]
        if self.map_and_record is not None:
            return self.map_and_record(
                topk_ids,
                state.expert_load_view,
                state.logical_to_physical_map,
                state.logical_replica_count,
                state.should_record_tensor,
                tokens,
            )
        # A switch on the device, so that a captured graph obeys it: recording nothing is recording 0 tokens.
        recorded = tokens * state.should_record_tensor
        if self.routing_table is not None:
            return map_and_record(topk_ids, self.routing_table, state.expert_load_view, num_tokens=recorded)
        return take_turns_and_record(
            topk_ids,
            state.logical_to_physical_map,
            state.logical_replica_count,
            state.expert_load_view,
            num_tokens=recorded,
        )
