# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which experts a token goes to: the router's scores through `npu_moe_gating_top_k`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vllm_ascend_moe.npu_ops import limits, ops
from vllm_ascend_moe.npu_ops.ops.gating_top_k import choose_by_logits, choose_experts

ScoringFunc = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class RoutingConfig:
    """A model's routing, checked against the op's limits when it is made.

    Attributes:
        num_experts: E.
        top_k: K.
        scoring_func: how logits become scores.
        renormalize: whether the weights of a token are divided by their sum.
        num_expert_group: groups of consecutive experts; 1 for none.
        topk_group: how many groups a token chooses from.
        routed_scaling_factor: multiplies the weights last.

    Raises:
        LimitError: a count is past what the op takes.
        ValueError: scoring_func is not known.
    """

    num_experts: int
    top_k: int
    scoring_func: ScoringFunc = "softmax"
    renormalize: bool = True
    num_expert_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.scoring_func not in {"softmax", "sigmoid"}:
            msg = f"scoring_func is {self.scoring_func!r}; expected 'softmax' or 'sigmoid'"
            raise ValueError(msg)
        limits.check_gating(self.num_experts, self.top_k, self.num_expert_group, self.topk_group)


def select_experts(
    router_logits: torch.Tensor, config: RoutingConfig, correction_bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's experts as vLLM does.

    A group's score is the sum of its two best experts where there is a correction bias, and its best
    expert's where there is none.

    Args:
        router_logits: [T, E].
        config: the model's routing.
        correction_bias: [E], added to the scores to choose by.

    Returns:
        weights: float32 [T, K].
        ids: int32 [T, K], logical.
    """
    softmax = config.scoring_func == "softmax"
    if ops.can_use_kernel(router_logits):
        if softmax and config.renormalize and correction_bias is None:
            return choose_by_logits(
                router_logits,
                config.top_k,
                k_group=config.topk_group,
                group_count=config.num_expert_group,
                scaling=config.routed_scaling_factor,
            )
        return choose_experts(
            router_logits if router_logits.dtype == torch.float32 else router_logits.float(),
            config.top_k,
            bias=correction_bias,
            k_group=config.topk_group,
            group_count=config.num_expert_group,
            sum_of_two=correction_bias is not None,
            softmax=softmax,
            normalise=config.renormalize,
            scaling=config.routed_scaling_factor,
        )[:2]
    # The op only rescales sigmoid's weights, always; and its documentation allows renorm 0 alone. What it
    # does not do is done here.
    by_op = softmax != config.renormalize
    weights, ids, scores = ops.npu_moe_gating_top_k(
        router_logits.float(),
        config.top_k,
        bias=None if correction_bias is None else correction_bias.float(),
        k_group=config.topk_group,
        group_count=config.num_expert_group,
        group_select_mode=0 if correction_bias is None else 1,
        renorm=0,
        norm_type=0 if softmax else 1,
        out_flag=not softmax and not config.renormalize,
        routed_scaling_factor=config.routed_scaling_factor if by_op else 1.0,
        eps=1e-20,
    )
    if by_op:
        return weights, ids
    weights = weights / weights.sum(-1, keepdim=True) if softmax else scores.gather(1, ids.long())
    return weights * config.routed_scaling_factor, ids
