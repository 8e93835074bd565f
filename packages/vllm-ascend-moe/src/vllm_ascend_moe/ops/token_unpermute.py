# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_moe_token_unpermute`: bring rows back to their tokens and add them up by weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from vllm_ascend_moe.ops._op import op, refuse

if TYPE_CHECKING:
    import torch

_NAME = "npu_moe_token_unpermute"


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
    """Return, for each token, the sum of its rows times their weights, without a [T, K, H] in between.

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
    if padded_mode:
        raise refuse(_NAME, "padded_mode", padded_mode, "False")
    if probs is None:
        return permuted_tokens.index_select(0, sorted_indices)
    if sorted_indices.numel() == 0:
        return permuted_tokens.new_zeros(probs.shape[0], permuted_tokens.shape[1])
    # An embedding bag is this sum: tokens are bags, and nothing of [T, K, H] is written.
    return functional.embedding_bag(
        sorted_indices.view(probs.shape).long(),
        permuted_tokens,
        mode="sum",
        per_sample_weights=probs.to(permuted_tokens.dtype),
    )
