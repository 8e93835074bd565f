# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What vLLM's runner V2 prepares of a batch and writes back after it: a program for each request, a loop here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_npu.kernels import given

if TYPE_CHECKING:
    from collections.abc import Sequence


@given
def _prepare_pos_seq_lens_kernel(
    grid: Sequence[int],
    *,
    pos_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    max_num_reqs: int,
    **_: object,
) -> None:
    """Write each token's position and each request's length; the last program pads."""
    rows = grid[0] - 1
    starts = query_start_loc_ptr[: rows + 1].tolist()
    computed = num_computed_tokens_ptr[idx_mapping_ptr[:rows].long()].tolist()
    for row, done in enumerate(computed):
        start, end = starts[row], starts[row + 1]
        seq_lens_ptr[row] = done + end - start
        pos_ptr[start:end] = torch.arange(done, done + end - start)
    seq_lens_ptr[rows:max_num_reqs] = 0


@given
def _combine_sampled_and_draft_tokens_kernel(
    grid: Sequence[int],
    *,
    input_ids_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    last_sampled_tokens_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    prefill_len_ptr: torch.Tensor,
    draft_tokens_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    logits_indices_ptr: torch.Tensor,
    NUM_NEW_SAMPLED_TOKENS: int = 1,  # noqa: N803
    **_: object,
) -> None:
    """Write where logits are taken from, and past the prompt the tokens that were sampled or drafted."""
    ends, logits = query_start_loc_ptr.tolist(), cu_num_logits_ptr.tolist()
    for row in range(grid[0]):
        request, length = int(idx_mapping_ptr[row]), int(seq_lens_ptr[row])
        prompt, count = int(prefill_len_ptr[request]), logits[row + 1] - logits[row]
        first, drafts = ends[row + 1] - count, count - NUM_NEW_SAMPLED_TOKENS
        logits_indices_ptr[logits[row] : logits[row + 1]] = torch.arange(first, first + count)
        if length <= prompt:
            continue
        if NUM_NEW_SAMPLED_TOKENS > 0 and length - count >= prompt:
            input_ids_ptr[first] = last_sampled_tokens_ptr[request]
        if drafts > 0:
            input_ids_ptr[ends[row + 1] - drafts : ends[row + 1]] = draft_tokens_ptr[request, :drafts]


@given
def _get_num_sampled_and_rejected_kernel(
    grid: Sequence[int],
    *,
    num_sampled_ptr: torch.Tensor,
    num_rejected_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,
    prefill_len_ptr: torch.Tensor,
    **_: object,
) -> None:
    """Write how many tokens of each request were sampled and rejected: none amid its prompt."""
    rows = grid[0]
    amid = seq_lens_ptr[:rows] < prefill_len_ptr[idx_mapping_ptr[:rows].long()]
    sampled = num_sampled_ptr[:rows].masked_fill(amid, 0)
    logits = cu_num_logits_ptr[: rows + 1].diff()
    num_sampled_ptr[:rows] = sampled
    num_rejected_ptr[:rows] = (logits - sampled).masked_fill(amid, 0)


@given
def _post_update_kernel(
    grid: Sequence[int],
    *,
    idx_mapping_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    last_sampled_tokens_ptr: torch.Tensor,
    output_bin_counts_ptr: torch.Tensor | None,
    sampled_tokens_ptr: torch.Tensor,
    num_sampled_ptr: torch.Tensor,
    num_rejected_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor | None,
    all_token_ids_ptr: torch.Tensor,
    total_len_ptr: torch.Tensor,
    **_: object,
) -> None:
    """Add the tokens that were sampled to each request; an index below zero is no request's."""
    for row, request in enumerate(idx_mapping_ptr[: grid[0]].tolist()):
        if request < 0:
            continue
        count, length = int(num_sampled_ptr[row]), int(total_len_ptr[request])
        tokens = sampled_tokens_ptr[row, :count]
        if count > 0:
            last_sampled_tokens_ptr[request] = tokens[-1]
            total_len_ptr[request] = length + count
            all_token_ids_ptr[request, length : length + count] = tokens
        if output_bin_counts_ptr is not None:
            for token in tokens.tolist():
                output_bin_counts_ptr[request, token] += 1
        queried = 0 if query_start_loc_ptr is None else int(query_start_loc_ptr[row : row + 2].diff())
        num_computed_tokens_ptr[request] += queried - int(num_rejected_ptr[row])
