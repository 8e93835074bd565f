# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_moe_gating_top_k`: which experts a token goes to, and with which weights."""

from __future__ import annotations

import numpy as np
import torch

from vllm_ascend_moe.ops._op import op, refuse

_NAME = "npu_moe_gating_top_k"
# The kernel runs on one thread and the twin's operations on all of torch's: with as many threads and tokens
# as this the twin is the faster one.
_TWIN_THREADS, _TWIN_TOKENS = 4, 512
_NO_BIAS = np.empty(0, dtype=np.float32)


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
    _check_modes(norm_type, group_select_mode)
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


@npu_moe_gating_top_k.on_cpu
def _fast(
    x: torch.Tensor,
    k: int,
    *,
    bias: torch.Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_modes(norm_type, group_select_mode)
    return choose_experts(
        x,
        k,
        bias=bias,
        k_group=k_group,
        group_count=group_count,
        sum_of_two=group_select_mode == 1,
        softmax=norm_type == 0,
        normalise=norm_type == 1 or renorm == 1,
        scores_wanted=out_flag,
        scaling=routed_scaling_factor,
        eps=eps,
    )


def choose_experts(
    x: torch.Tensor,
    k: int,
    *,
    bias: torch.Tensor | None,
    k_group: int,
    group_count: int,
    sum_of_two: bool,
    softmax: bool,
    normalise: bool,
    scores_wanted: bool = False,
    scaling: float = 1.0,
    eps: float = 1e-20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what the op does, on a CPU by a kernel, with normalisation apart from the kind of scores.

    Args:
        x: logits [T, E], float16, bfloat16 or float32.
        k: K, experts a token.
        bias: [E], added to the scores to choose by.
        k_group: how many groups a token may choose from.
        group_count: into how many groups of consecutive experts E is split.
        sum_of_two: whether a group's score is the sum of its two best, rather than its best.
        softmax: whether scores are a softmax; else a sigmoid.
        normalise: whether the weights are divided by their sum.
        scores_wanted: whether the third output is wanted; otherwise it is undefined.
        scaling: multiplies the weights last.
        eps: added to the sum that is divided by.

    Returns:
        weights [T, K] as x, ids int32 [T, K], scores float32 [T, E].

    Raises:
        ValueError: k or the groups do not fit E.
    """
    if torch.get_num_threads() >= _TWIN_THREADS and len(x) >= _TWIN_TOKENS:
        weights, ids, scores = npu_moe_gating_top_k.twin(
            x.float(),
            k,
            bias=bias,
            k_group=k_group,
            group_count=group_count,
            group_select_mode=int(sum_of_two),
            norm_type=int(not softmax),
        )
        if not softmax:
            weights = scores.gather(1, ids.long())
        weights = weights / (weights.sum(-1, keepdim=True) + eps) if normalise else weights
        return (weights * scaling).to(x.dtype), ids, scores
    from vllm_ascend_moe.kernels import gating_top_k as kernel

    num_experts = x.shape[1]
    group_size = num_experts // group_count
    if num_experts % group_count or not k <= min(k_group, group_count) * group_size:
        expected = f"{group_count} equal groups of {num_experts} experts, {k_group} of them with {k} or more"
        raise refuse(_NAME, "k", k, expected)
    logits = _plain(x)
    # The order of logits is that of a softmax, and what a softmax divides by falls out of normalised weights.
    exponential = softmax and normalise and bias is None and not sum_of_two and not scores_wanted
    scores = logits if exponential else logits.softmax(-1) if softmax else logits.sigmoid()
    # NumPy allocates small arrays several times as fast as torch.
    written, chosen = np.empty((len(x), k), dtype=np.float32), np.empty((len(x), k), dtype=np.int32)
    kernel.choose_experts(
        scores.numpy(),
        _NO_BIAS if bias is None else _plain(bias).numpy(),
        group_count,
        min(k_group, group_count),
        sum_of_two,
        exponential,
        normalise,
        scaling,
        eps,
        written,
        chosen,
    )
    result = torch.from_numpy(written)
    return result if x.dtype == torch.float32 else result.to(x.dtype), torch.from_numpy(chosen), scores


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a kernel reads it: float32, dense, without a gradient."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.float().contiguous()


def _check_modes(norm_type: int, group_select_mode: int) -> None:
    if norm_type not in {0, 1}:
        raise refuse(_NAME, "norm_type", norm_type, "0 (softmax) or 1 (sigmoid)")
    if group_select_mode not in {0, 1}:
        raise refuse(_NAME, "group_select_mode", group_select_mode, "0 (maximum) or 1 (sum of two)")


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
