# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Attention over plain and paged keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from torch_npu._registry import NPU, given

if TYPE_CHECKING:
    from collections.abc import Sequence

_CAUSAL = 3
# What query and output look like: [tokens, heads], or batch (B), heads (N), sequence (S); after _ the output.
_LAYOUTS = ("TND", "TND_NTD", "BNSD", "BNSD_NBSD", "BSND", "BSND_NBSD")
_STACKED = 4
_IGNORED = ("inner_precise", "pre_tokens", "next_tokens")
_QUANTISED = ("antiquant_mode", "key_antiquant_mode", "value_antiquant_mode")


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
        float32 [q, heads, V], and the logarithms of the sums of exponentials, float32 [q, heads].
    """
    num_queries, heads, _ = query.shape
    num_keys, groups, _ = keys.shape
    keys = keys.repeat_interleave(heads // groups, 1)
    values = values.repeat_interleave(heads // groups, 1)
    scores = torch.einsum("qhd,nhd->hqn", query.float(), keys.float()) * scale
    if causal:
        later = torch.ones(num_queries, num_keys, dtype=torch.bool).triu(num_keys - num_queries + 1)
        scores = scores.masked_fill(later, -torch.inf)
    return torch.einsum("hqn,nhd->qhd", scores.softmax(-1), values.float()), scores.logsumexp(-1).t()


class Sequences(NamedTuple):
    """Where a batch's keys are.

    Attributes:
        lengths: plain: ends of the sequences' keys, cumulative; paged: their numbers.
        block_table: int32 [sequences, blocks of one]; None if keys are not paged.
        block_size: slots of a block.
        groups: KV heads.
    """

    lengths: Sequence[int]
    block_table: torch.Tensor | None
    block_size: int
    groups: int

    def of(self, row: int, cache: torch.Tensor) -> torch.Tensor:
        """Return one sequence's keys or values, [n, KV heads, …].

        Args:
            row: the sequence.
            cache: plain [T, KV heads, …]; paged [blocks, block size, KV heads · …] or [blocks, KV heads, block
                size, …].
        """
        if self.block_table is None:
            return cache[self.lengths[row - 1] if row else 0 : self.lengths[row]]
        blocks = self.block_table[row, : -(-self.lengths[row] // self.block_size)].long()
        if cache.dim() == _STACKED:
            found = cache[blocks].transpose(1, 2).flatten(0, 1)
        else:
            found = cache[blocks].reshape(len(blocks) * self.block_size, self.groups, -1)
        return found[: self.lengths[row]]


def _check_mode(input_layout: str, sparse_mode: int, atten_mask: torch.Tensor | None) -> None:
    """Refuse what is not emulated; raises as `npu_fused_infer_attention_score`."""
    if (
        input_layout not in _LAYOUTS
        or sparse_mode not in {0, _CAUSAL}
        or (sparse_mode == 0 and atten_mask is not None)
    ):
        masked = "without" if atten_mask is None else "with"
        msg = (
            f"npu_fused_infer_attention_score: {input_layout}, sparse_mode {sparse_mode} {masked} a mask; expected "
            f"one of {', '.join(_LAYOUTS)}, and sparse_mode 3, or 0 without a mask"
        )
        raise NotImplementedError(msg)


@given(NPU, "npu_fused_infer_attention_score", ignored=(*_IGNORED, *_QUANTISED))
def npu_fused_infer_attention_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    atten_mask: torch.Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: torch.Tensor | None = None,
    query_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
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
        query: TND: [T, heads, D]; BNSD: [B, heads, S, D]; BSND: [B, S, heads, D].
        key: TND: [T', KV heads, D]; paged: see `Sequences.of`.
        value: as key.
        atten_mask: with sparse_mode 3, whose causal mask it repeats.
        actual_seq_lengths: TND: ends of the sequences' queries, cumulative.
        actual_seq_lengths_kv: ends of their keys, cumulative; paged: their numbers.
        block_table: int32 [sequences, blocks of one]; None if keys are not paged.
        query_rope: what is rotated of the queries, as query; added to the products.
        key_rope: of the keys, as key.
        num_heads: heads.
        scale: of the products.
        input_layout: TND, BNSD or BSND, then perhaps how the output is turned.
        num_key_value_heads: KV heads; 0 for as many as heads.
        sparse_mode: 0 (all) or 3 (causal, queries last).
        block_size: slots of a block.
        softmax_lse_flag: whether the second output is wanted.

    Returns:
        as query with V in place of D, or turned to heads first; rows of no sequence are undefined (here NaN).
        float32 [T, heads, 1]; undefined unless it is wanted.

    Raises:
        NotImplementedError: another layout or mode.
    """
    _check_mode(input_layout, sparse_mode, atten_mask)
    rows, ends = _flatten(query, input_layout, actual_seq_lengths)
    if query_rope is not None:
        rows = torch.cat((rows, _flatten(query_rope, input_layout, actual_seq_lengths)[0]), -1)
    lengths = list(actual_seq_lengths_kv or ())
    sequences = Sequences(lengths, block_table, block_size, num_key_value_heads or num_heads)
    parts, sums = [], []
    start = 0
    for row, end in enumerate(ends):
        if end > start:
            keys = sequences.of(row, key)
            if key_rope is not None:
                keys = torch.cat((keys, sequences.of(row, key_rope)), -1)
            values = sequences.of(row, value)
            part, of_part = attend(rows[start:end], keys, values, scale, causal=sparse_mode == _CAUSAL)
            parts.append(part)
            sums.append(of_part)
        start = end
    out = _undefined_after(parts, len(rows), (rows.shape[1], value.shape[-1]))
    lse = _undefined_after(sums, len(rows), (rows.shape[1],)).unsqueeze(-1)
    turned = _turn(out.to(query.dtype), query.shape, input_layout)
    return turned, lse if softmax_lse_flag else lse.new_full((1,), torch.nan)


@given(NPU, "npu_fused_infer_attention_score_v2", ignored=_IGNORED)
def npu_fused_infer_attention_score_v2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    query_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    atten_mask: torch.Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    block_table: torch.Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    return_softmax_lse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `npu_fused_infer_attention_score` does, by other names."""
    return npu_fused_infer_attention_score(
        query,
        key,
        value,
        query_rope=query_rope,
        key_rope=key_rope,
        atten_mask=atten_mask,
        actual_seq_lengths=actual_seq_qlen,
        actual_seq_lengths_kv=actual_seq_kvlen,
        block_table=block_table,
        num_heads=num_query_heads,
        num_key_value_heads=num_key_value_heads,
        scale=softmax_scale,
        input_layout=input_layout,
        sparse_mode=sparse_mode,
        block_size=block_size,
        softmax_lse_flag=return_softmax_lse,
    )


@given(NPU, "npu_attention_update")
def npu_attention_update(
    lse: Sequence[torch.Tensor], local_out: Sequence[torch.Tensor], update_type: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join what attention to parts of the keys gave.

    Args:
        lse: of each part the logarithms of the sums of exponentials, float32 [n].
        local_out: of each part the output, [n, V].
        update_type: 0, without the joint logarithms.

    Returns:
        the joint output, [n, V], and NaN.

    Raises:
        NotImplementedError: another update_type.
    """
    if update_type != 0:
        msg = f"npu_attention_update: update_type is {update_type}; expected 0"
        raise NotImplementedError(msg)
    share = torch.stack(list(lse)).softmax(0).unsqueeze(-1)  # [parts, n, 1]
    out = (torch.stack(list(local_out)).float() * share).sum(0)
    return out.to(local_out[0].dtype), torch.full((1,), torch.nan)


def _flatten(query: torch.Tensor, layout: str, ends: Sequence[int] | None) -> tuple[torch.Tensor, list[int]]:
    """Return queries as [T, heads, D], and the ends of the sequences, cumulative."""
    if layout.startswith("TND"):
        return query, list(ends or ())
    by_token = query.transpose(1, 2) if layout.startswith("BNSD") else query  # [B, S, heads, D]
    batch, length = by_token.shape[:2]
    return by_token.flatten(0, 1), [length * (row + 1) for row in range(batch)]


def _turn(out: torch.Tensor, query: Sequence[int], layout: str) -> torch.Tensor:
    """Give [T, heads, V] the shape that the layout names."""
    taken, _, given_back = layout.partition("_")
    if taken == "TND":
        return out.transpose(0, 1).contiguous() if given_back else out
    by_batch = out.view(query[0], -1, *out.shape[1:])  # [B, S, heads, V]
    if given_back == "NBSD":
        return by_batch.permute(2, 0, 1, 3).contiguous()
    return by_batch.transpose(1, 2).contiguous() if taken == "BNSD" else by_batch


def _undefined_after(parts: Sequence[torch.Tensor], rows: int, shape: Sequence[int]) -> torch.Tensor:
    found = torch.cat(list(parts)) if parts else torch.empty(0, *shape)
    return torch.cat((found, torch.full((rows - len(found), *found.shape[1:]), torch.nan)))
