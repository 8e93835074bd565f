# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's categorical sampling, two kernels; greedy only, because the random numbers of others are Triton's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_npu.kernels import given

if TYPE_CHECKING:
    from collections.abc import Sequence


@given
def _categorical_prepare_mass_kernel(
    grid: Sequence[int],  # noqa: ARG001 - its programs share the blocks
    *,
    block_argmax_ptr: torch.Tensor,
    block_max_ptr: torch.Tensor,
    block_mass_ptr: torch.Tensor,
    fine_mass_ptr: torch.Tensor,
    logits_cache_ptr: torch.Tensor | None,
    logits_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    temp_ptr: torch.Tensor,
    num_tokens: int,
    vocab_size: int,
    num_blocks: int,
    COARSE_BLOCK_SIZE: int,  # noqa: N803
    **_: object,
) -> None:
    """Write each block's largest logit and where it is; greedy tokens have no mass."""
    if logits_cache_ptr is not None:
        msg = "_categorical_prepare_mass_kernel: logits_cache_ptr is a tensor; expected None: nothing else is emulated"
        raise NotImplementedError(msg)
    _require_greedy(expanded_idx_mapping_ptr[:num_tokens], temp_ptr)
    padded = torch.full((num_tokens, num_blocks * COARSE_BLOCK_SIZE), -torch.inf)
    padded[:, :vocab_size] = logits_ptr[:num_tokens, :vocab_size]
    largest, at = padded.view(num_tokens, num_blocks, COARSE_BLOCK_SIZE).max(dim=-1)
    block_max_ptr[:num_tokens, :num_blocks] = largest
    block_argmax_ptr[:num_tokens, :num_blocks] = at + torch.arange(num_blocks) * COARSE_BLOCK_SIZE
    block_mass_ptr[:num_tokens, :num_blocks] = 0
    fine_mass_ptr[:num_tokens, :num_blocks] = 0


@given
def _categorical_sample_kernel(
    grid: Sequence[int],  # noqa: ARG001 - its programs share the tokens
    *,
    sampled_ptr: torch.Tensor,
    block_argmax_ptr: torch.Tensor,
    block_max_ptr: torch.Tensor,
    expanded_idx_mapping_ptr: torch.Tensor,
    temp_ptr: torch.Tensor,
    num_tokens: int,
    num_blocks: int,
    **_: object,
) -> None:
    """Take the token of the largest logit."""
    _require_greedy(expanded_idx_mapping_ptr[:num_tokens], temp_ptr)
    block = block_max_ptr[:num_tokens, :num_blocks].argmax(dim=-1, keepdim=True)
    sampled_ptr[:num_tokens] = block_argmax_ptr[:num_tokens, :num_blocks].gather(1, block)[:, 0]


def _require_greedy(requests: torch.Tensor, temperatures: torch.Tensor) -> None:
    """Refuse temperatures; a request below zero is none."""
    found = temperatures[requests[requests >= 0].long()]
    if (found != 0).any():
        msg = f"categorical sampling: a temperature is {float(found.max())}; expected 0: nothing else is emulated"
        raise NotImplementedError(msg)
