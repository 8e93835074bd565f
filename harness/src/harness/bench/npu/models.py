# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The shapes that are timed: MoE layers of real models, each figure as in the model's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_ascend_moe.npu_ops.routing import RoutingConfig, ScoringFunc


@dataclass(frozen=True)
class Model:
    """An MoE layer, and the deployment whose rank is timed.

    Attributes:
        name: as it stands in records.
        source: where the figures are from.
        num_experts: E (`n_routed_experts`, `num_experts`).
        top_k: K (`num_experts_per_tok`).
        hidden_size: H (`hidden_size`).
        intermediate_size: I, of one expert (`moe_intermediate_size`).
        scoring_func: how logits become scores (`scoring_func`).
        biased: whether a correction bias is added to choose by (`topk_method` noaux_tc).
        renormalize: whether weights are divided by their sum (`norm_topk_prob`).
        num_groups: expert groups (`n_group`), 1 for none.
        topk_group: groups a token chooses from (`topk_group`).
        scaling: multiplies the weights (`routed_scaling_factor`).
        ep_size: expert-parallel ranks; this project's choice, not the model's.
        redundant: redundant experts; likewise.
        dtype: of activations and weights. DeepSeek and Kimi publish float8 weights; bfloat16 is timed.
    """

    name: str
    source: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    scoring_func: ScoringFunc = "softmax"
    biased: bool = False
    renormalize: bool = True
    num_groups: int = 1
    topk_group: int = 1
    scaling: float = 1.0
    ep_size: int = 32
    redundant: int = 32
    dtype: str = "bfloat16"

    @property
    def local_experts(self) -> int:
        """Experts of one rank, without redundant ones: what the products are timed with."""
        return self.num_experts // self.ep_size

    @property
    def num_physical(self) -> int:
        """Physical experts on all ranks."""
        return self.num_experts + self.redundant

    def routing(self) -> RoutingConfig:
        """Return the model's routing, checked against torch_npu's limits."""
        from vllm_ascend_moe.npu_ops.routing import RoutingConfig

        return RoutingConfig(
            self.num_experts,
            self.top_k,
            self.scoring_func,
            self.renormalize,
            self.num_groups,
            self.topk_group,
            self.scaling,
        )


DEEPSEEK = Model(
    name="deepseek-v3",
    source="deepseek-ai/DeepSeek-V3 and DeepSeek-R1",
    num_experts=256,
    top_k=8,
    hidden_size=7168,
    intermediate_size=2048,
    scoring_func="sigmoid",
    biased=True,
    num_groups=8,
    topk_group=4,
    scaling=2.5,
)
QWEN3 = Model(
    name="qwen3-235b",
    source="Qwen/Qwen3-235B-A22B",
    num_experts=128,
    top_k=8,
    hidden_size=4096,
    intermediate_size=1536,
    ep_size=16,
    redundant=16,
)
KIMI = Model(
    name="kimi-k2",
    source="moonshotai/Kimi-K2-Instruct",
    num_experts=384,
    top_k=8,
    hidden_size=7168,
    intermediate_size=2048,
    scoring_func="sigmoid",
    biased=True,
    scaling=2.827,
)
QWEN3_NEXT = Model(
    name="qwen3-next",
    source="Qwen/Qwen3-Next-80B-A3B-Instruct",
    num_experts=512,
    top_k=10,
    hidden_size=2048,
    intermediate_size=512,
)

MODELS: dict[str, Model] = {model.name: model for model in (DEEPSEEK, QWEN3, KIMI, QWEN3_NEXT)}
