# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_moe_gating_top_k`: which experts a token goes to, and with which weights."""

from __future__ import annotations

import torch

from vllm_ascend_moe.ops._op import op, refuse

_NAME = "npu_moe_gating_top_k"


@op(
    "npu_moe_gating_top_k(Tensor x, int k, *, Tensor? bias=None, Tensor? input_ids=None, Tensor? tid2eid=None, "
    "int k_group=1, int group_count=1, int group_select_mode=0, int renorm=0, int norm_type=0, "
    "bool out_flag=False, float routed_scaling_factor=1.0, float eps=1e-20) -> (Tensor, Tensor, Tensor)"
)
def npu_moe_gating_top_k(
    x: torch.Tensor,
    k: int,
    *,
    bias: torch.Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,  # noqa: ARG001 - the scores cost nothing here
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose each token's experts, computing in float32 whatever the input's dtype.

    Args:
        x: logits [T, E], float16, bfloat16 or float32.
        k: K, experts a token.
        bias: [E], added to the scores to choose by, not to the weights.
        k_group: how many groups a token may choose from.
        group_count: into how many groups of consecutive experts E is split.
        group_select_mode: a group's score is its best expert's (0) or the sum of its two best (1).
        renorm: 1 to divide the weights by their sum.
        norm_type: scores by softmax (0) or sigmoid (1); sigmoid's weights are always divided by their sum.
        out_flag: whether the third output is wanted; otherwise it is undefined.
        routed_scaling_factor: multiplies the weights last.
        eps: added to the sum that is divided by.

    Returns:
        weights: [T, K], as x.
        ids: int32 [T, K], best first.
        scores: float32 [T, E], before the bias.

    Raises:
        ValueError: a mode does not exist.
    """
    if norm_type not in {0, 1}:
        raise refuse(_NAME, "norm_type", norm_type, "0 (softmax) or 1 (sigmoid)")
    if group_select_mode not in {0, 1}:
        raise refuse(_NAME, "group_select_mode", group_select_mode, "0 (maximum) or 1 (sum of two)")
    logits = x.float()
    scores = logits.softmax(-1) if norm_type == 0 else logits.sigmoid()
    choice = scores if bias is None else scores + bias.float()
    if k_group < group_count:
        choice = _keep_best_groups(choice, k_group, group_count, group_select_mode)
    ids = choice.topk(k, dim=-1).indices  # [T, K]
    weights = scores.gather(1, ids)
    if norm_type == 1 or renorm == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    weights = weights * routed_scaling_factor
    return weights.to(x.dtype), ids.to(torch.int32), scores


def _keep_best_groups(choice: torch.Tensor, k_group: int, group_count: int, mode: int) -> torch.Tensor:
    """Set the experts of all but each token's best groups to −inf; 0 would beat negative scores."""
    grouped = choice.view(len(choice), group_count, choice.shape[1] // group_count)  # [T, G, E / G]
    if mode == 0:
        group_score = grouped.amax(-1)
    else:
        # The two best by two maxima: several times as fast as a top-k of two.
        best, where = grouped.max(-1, keepdim=True)
        group_score = best.squeeze(-1) + grouped.scatter(-1, where, -torch.inf).amax(-1)
    groups = group_score.topk(k_group, dim=-1).indices
    dropped = torch.ones_like(group_score, dtype=torch.bool).scatter_(1, groups, False)  # noqa: FBT003
    return grouped.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(1)
