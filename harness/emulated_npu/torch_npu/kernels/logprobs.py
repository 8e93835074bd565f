# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of chosen tokens, and their ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_npu.kernels import given

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


@given
def _topk_log_softmax_kernel(
    grid: Sequence[int],
    *,
    output_ptr: torch.Tensor,
    logits_ptr: torch.Tensor,
    topk_ids_ptr: torch.Tensor,
    topk: int,
    vocab_size: int,
    **_: object,
) -> None:
    """Write the log-probabilities of each row's chosen tokens."""
    rows = grid[0]
    logits = logits_ptr[:rows, :vocab_size].float()
    # In the kernel's order: what is subtracted first decides how it is rounded.
    largest = logits.max(dim=-1, keepdim=True).values
    total = (logits - largest).exp().sum(dim=-1, keepdim=True).log()
    chosen = logits.gather(1, topk_ids_ptr[:rows, :topk].long())
    output_ptr[:rows, :topk] = chosen - largest - total


@given
def _ranks_kernel(
    grid: Sequence[int],
    *,
    output_ptr: torch.Tensor,
    logits_ptr: torch.Tensor,
    token_ids_ptr: torch.Tensor,
    vocab_size: int,
    batch_size: int | None = None,
    **_: object,
) -> None:
    """Write the rank of the token that was chosen: the first is 1 by vLLM's kernel, 0 by vllm-ascend's of the same name.

    vllm-ascend's programs share the rows, so that it is told their number, and vLLM's take one each.
    """
    rows = grid[0] if batch_size is None else batch_size
    logits = logits_ptr[:rows, :vocab_size]
    chosen = logits.gather(1, token_ids_ptr[:rows, None].long())
    before = logits >= chosen if batch_size is None else logits > chosen
    output_ptr[:rows] = before.sum(dim=-1)
