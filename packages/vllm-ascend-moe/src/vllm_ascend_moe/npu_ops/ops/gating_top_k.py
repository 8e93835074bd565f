# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_moe_gating_top_k`: which experts a token goes to, and with which weights."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_ascend_moe.npu_ops.ops._op import op, refuse
from vllm_ascend_moe.npu_ops.ops._undefined import undefined_like

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = "npu_moe_gating_top_k"
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
    out_flag: bool = False,
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
        ids: int32 [T, K], best first; of equal ones the lower id first, experts and groups alike.
        scores: float32 [T, E], before the bias; undefined (here NaN) without out_flag.

    Raises:
        ValueError: a mode does not exist, or k or the groups do not fit E.
    """
    _check_modes(norm_type, group_select_mode)
    _check_counts(x.shape[1], k, k_group, group_count)
    scores = _scores(x, norm_type)
    choice = scores if bias is None else scores + bias.float()
    if k_group < group_count:
        # The experts of each token's best groups, by id: [T, k_group * E / G].
        candidates = _of_best_groups(choice, k_group, group_count, group_select_mode)
        ids = candidates.gather(1, _best(choice.gather(1, candidates), k))
    else:
        ids = _best(choice, k)  # [T, K]
    weights = scores.gather(1, ids)
    if norm_type == 1 or renorm == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    weights = weights * routed_scaling_factor
    return weights.to(x.dtype), ids.to(torch.int32), scores if out_flag else undefined_like(scores)


@npu_moe_gating_top_k.by_kernel
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
    out_flag: bool = False,  # noqa: ARG001 - the scores cost nothing here
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
        scaling: multiplies the weights last.
        eps: added to the sum that is divided by.

    Returns:
        weights [T, K] as x, ids int32 [T, K], scores float32 [T, E].

    Raises:
        ValueError: k or the groups do not fit E.
    """
    _check_counts(x.shape[1], k, k_group, group_count)
    from vllm_ascend_moe.npu_ops.kernels import gating_top_k as kernel

    scores = _scores(x, int(not softmax))
    # NumPy allocates small arrays several times as fast as torch.
    written, chosen = np.empty((len(x), k), dtype=np.float32), np.empty((len(x), k), dtype=np.int32)
    kernel.choose_experts(
        scores.numpy(),
        _NO_BIAS if bias is None else _plain(bias).numpy(),
        group_count,
        min(k_group, group_count),
        sum_of_two,
        normalise,
        scaling,
        eps,
        written,
        chosen,
    )
    result = torch.from_numpy(written)
    return result if x.dtype == torch.float32 else result.to(x.dtype), torch.from_numpy(chosen), scores


def choose_by_logits(
    x: torch.Tensor, k: int, *, k_group: int, group_count: int, scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do by a kernel what `choose_experts` does by softmax, normalised and without a bias, with a third of its calls.

    Logits whose softmax rounds to the same number are told apart here.

    Args:
        x: logits [T, E], float16, bfloat16 or float32.
        k: K, experts a token.
        k_group: how many groups a token may choose from, by the best expert of each.
        group_count: into how many groups of consecutive experts E is split.
        scaling: multiplies the weights.

    Returns:
        weights float32 [T, K], ids int32 [T, K].

    Raises:
        ValueError: k or the groups do not fit E.
    """
    tokens, experts = x.shape
    _check_counts(experts, k, k_group, group_count)
    written, chosen = np.empty((tokens, k), dtype=np.float32), np.empty((tokens, k), dtype=np.int32)
    logits = x if x.dtype == torch.float32 and x.is_contiguous() and not x.requires_grad else _plain(x)
    groups = min(k_group, group_count)
    _kernel_by_logits()(logits.data_ptr(), experts, group_count, groups, scaling, written, chosen)
    return torch.from_numpy(written), torch.from_numpy(chosen)


@functools.cache
def _kernel_by_logits() -> Callable[..., None]:
    """Load the kernel once: an import in a function costs a fifth of a call for one token."""
    from vllm_ascend_moe.npu_ops.kernels.top_k_softmax import choose_by_logits as kernel

    return kernel


def _scores(x: torch.Tensor, norm_type: int) -> torch.Tensor:
    """Return softmax or sigmoid of each row, float32 [T, E], dense: the same for equal logits, wherever they are.

    A sigmoid in float32 is not: torch computes the end of a vector otherwise than the rest, and where ends are
    depends on the number of threads.
    """
    logits = _plain(x)
    return logits.softmax(-1) if norm_type == 0 else logits.double().sigmoid_().float()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a kernel reads it: float32, dense, without a gradient."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.float().contiguous()


def _check_counts(num_experts: int, k: int, k_group: int, group_count: int) -> None:
    if num_experts % group_count or not k <= min(k_group, group_count) * (num_experts // group_count):
        expected = f"{group_count} equal groups of {num_experts} experts, {k_group} of them with {k} or more"
        raise refuse(_NAME, "k", k, expected)


def _check_modes(norm_type: int, group_select_mode: int) -> None:
    if norm_type not in {0, 1}:
        raise refuse(_NAME, "norm_type", norm_type, "0 (softmax) or 1 (sigmoid)")
    if group_select_mode not in {0, 1}:
        raise refuse(_NAME, "group_select_mode", group_select_mode, "0 (maximum) or 1 (sum of two)")


def _best(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return where the k largest of each row are, largest first, of equal ones the first first."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _of_best_groups(choice: torch.Tensor, k_group: int, group_count: int, mode: int) -> torch.Tensor:
    """Return the experts of each token's best groups, in the order of their ids."""
    size = choice.shape[1] // group_count
    grouped = choice.view(len(choice), group_count, size)  # [T, G, E / G]
    two = grouped.topk(min(2, size), -1).values
    score = two[..., 0] if mode == 0 else two.sum(-1)
    groups = _best(score, k_group).sort(-1).values  # [T, k_group]
    return (groups.unsqueeze(-1) * size + torch.arange(size, device=choice.device)).flatten(1)
