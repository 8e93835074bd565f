# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Attention over plain and paged keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_npu._registry import NPU, given

if TYPE_CHECKING:
    from collections.abc import Sequence

_CAUSAL = 3


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend within one sequence, in float32.

    Args:
        query: [q, heads, D]; the last ones of the sequence.
        keys: [n, KV heads, D].
        values: [n, KV heads, V].
        scale: of the products.
        causal: whether a query sees only keys up to its own place.

    Returns:
        [q, heads, V] in the query's dtype, and the logarithm of the sums of exponentials, float32 [q, heads].
    """
    num_queries, heads, _ = query.shape
    num_keys, groups, _ = keys.shape
    keys = keys.repeat_interleave(heads // groups, 1)
    values = values.repeat_interleave(heads // groups, 1)
    scores = torch.einsum("qhd,nhd->hqn", query.float(), keys.float()) * scale
    if causal:
        later = torch.ones(num_queries, num_keys, dtype=torch.bool).triu(num_keys - num_queries + 1)
        scores = scores.masked_fill(later, -torch.inf)
    out = torch.einsum("hqn,nhd->qhd", scores.softmax(-1), values.float())
    return out.to(query.dtype), scores.logsumexp(-1).t()


@given(
    NPU,
    "npu_fused_infer_attention_score",
    ignored=("atten_mask", "inner_precise", "pre_tokens", "next_tokens"),
)
def npu_fused_infer_attention_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: torch.Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    block_size: int = 0,
    softmax_lse_flag: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend within each sequence of a batch.

    Args:
        query: TND: [T, heads, D].
        key: as query with KV heads, [T', KV heads, D]; paged: [blocks, block size, …].
        value: as key.
        actual_seq_lengths: ends of the sequences' queries, cumulative.
        actual_seq_lengths_kv: ends of their keys, cumulative; paged: their numbers.
        block_table: int32 [sequences, blocks of one]; None if keys are not paged.
        num_heads: heads.
        scale: of the products.
        input_layout: TND.
        num_key_value_heads: KV heads; 0 for as many as heads.
        sparse_mode: 0 (all) or 3 (causal, queries last).
        block_size: slots of a block.
        softmax_lse_flag: whether the second output is wanted.

    Returns:
        [T, heads, V] in which rows of no sequence are NaN, and float32 [T, heads, 1].

    Raises:
        NotImplementedError: another layout or mode.
    """
    if input_layout != "TND" or sparse_mode not in {0, _CAUSAL}:
        msg = f"npu_fused_infer_attention_score: layout {input_layout}, sparse_mode {sparse_mode}; expected TND, 0 or 3"
        raise NotImplementedError(msg)
    groups = num_key_value_heads or num_heads
    width = (
        value.shape[-1] if block_table is None else value.shape[-1] * value.shape[-2] // _held(value, groups)
    )
    out = query.new_full((*query.shape[:2], width), torch.nan)
    sums = torch.full((*query.shape[:2], 1), torch.nan)
    start = 0
    ends, lengths = list(actual_seq_lengths or ()), list(actual_seq_lengths_kv or ())
    for row, end in enumerate(ends):
        if end == start:
            continue
        if block_table is None:
            first = lengths[row - 1] if row else 0
            keys, values = key[first : lengths[row]], value[first : lengths[row]]
        else:
            blocks = block_table[row, : -(-lengths[row] // block_size)].long()
            keys = key[blocks].view(len(blocks) * block_size, groups, -1)[: lengths[row]]
            values = value[blocks].view(len(blocks) * block_size, groups, -1)[: lengths[row]]
        out[start:end], found = attend(query[start:end], keys, values, scale, causal=sparse_mode == _CAUSAL)
        sums[start:end, :, 0] = found
        start = end
    return out, sums if softmax_lse_flag else sums.new_full((1,), torch.nan)


def _held(value: torch.Tensor, groups: int) -> int:
    """Return how many heads the last two axes of a paged cache hold together."""
    return groups if value.dim() > 3 else groups * value.shape[-2]  # noqa: PLR2004 - [blocks, size, heads, D]
