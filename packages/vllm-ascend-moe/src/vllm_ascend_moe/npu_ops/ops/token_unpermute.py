# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_moe_token_unpermute`: bring rows back to their tokens and add them up by weight."""

from __future__ import annotations

import torch
from torch.nn import functional

from vllm_ascend_moe.npu_ops.ops._op import op, refuse

_NAME = "npu_moe_token_unpermute"
# Values of rows that are added up at once: they stay in a core's cache.
_AT_ONCE = 1 << 18


@op(
    "npu_moe_token_unpermute(Tensor permuted_tokens, Tensor sorted_indices, Tensor? probs=None, "
    "bool padded_mode=False, int[]? restore_shape=None) -> Tensor"
)
def npu_moe_token_unpermute(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    probs: torch.Tensor | None = None,
    padded_mode: bool = False,  # noqa: FBT001, FBT002 - torch_npu's signature
) -> torch.Tensor:
    """Return, for each token, the sum of its rows times their weights, in float32 and rounded once.

    A row of weight 0 adds nothing, whatever it holds: it may be an undefined one.

    Args:
        permuted_tokens: [M, H], float16, bfloat16 or float32.
        sorted_indices: int32 or int64 [T·K], the row of entry t·K + k.
        probs: [T, K], dtype of permuted_tokens; None for one row a token, as it is.
        padded_mode: False.

    Returns:
        [T, H], dtype of permuted_tokens.

    Raises:
        ValueError: padded_mode is True.
    """
    _refuse_padded(padded_mode)
    if probs is None:
        return permuted_tokens.index_select(0, sorted_indices)
    total = torch.zeros(probs.shape[0], permuted_tokens.shape[1], device=permuted_tokens.device)
    for rows, weights in zip(sorted_indices.view(probs.shape).unbind(1), probs.unbind(1), strict=True):
        parts = permuted_tokens.index_select(0, rows).float() * weights.float().unsqueeze(1)  # [T, H]
        total += torch.where(weights.unsqueeze(1) == 0, 0, parts)
    return total.to(permuted_tokens.dtype)


@npu_moe_token_unpermute.on_cpu
def _fast(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    probs: torch.Tensor | None = None,
    padded_mode: bool = False,  # noqa: FBT001, FBT002 - torch_npu's signature
) -> torch.Tensor:
    """Do the same without a [T, K, H] in between; a row of weight 0 is read all the same."""
    _refuse_padded(padded_mode)
    if probs is None:
        return permuted_tokens.index_select(0, sorted_indices)
    tokens, top_k = probs.shape
    width = permuted_tokens.shape[1]
    if 0 in {tokens, top_k, width}:
        return permuted_tokens.new_zeros(tokens, width)
    if permuted_tokens.dtype == torch.float32:
        # An embedding bag is this sum: tokens are bags. In 16 bits it rounds more than once.
        return functional.embedding_bag(
            sorted_indices.view(tokens, top_k).long(),
            permuted_tokens,
            mode="sum",
            per_sample_weights=probs.float(),
        )
    made = torch.empty(tokens, width, dtype=permuted_tokens.dtype)
    step = max(1, _AT_ONCE // (top_k * width))
    for start in range(0, tokens, step):
        weights = probs[start : start + step].float()
        rows = permuted_tokens.index_select(0, sorted_indices[start * top_k : (start + step) * top_k])
        made[start : start + step] = torch.bmm(
            weights.unsqueeze(1), rows.float().view(len(weights), top_k, width)
        ).squeeze(1)
    return made


def _refuse_padded(padded_mode: bool) -> None:  # noqa: FBT001 - the op's
    if padded_mode:
        raise refuse(_NAME, "padded_mode", padded_mode, "False")
