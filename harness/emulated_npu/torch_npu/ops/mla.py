# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What multi-head latent attention needs beside attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_npu._registry import ATB, NPU, given
from torch_npu.ops import cache
from torch_npu.ops.attention import attend
from torch_npu.ops.norms import npu_rms_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGED = ("PA", "PA_BNSD")


@given(NPU, "npu_interleave_rope")
def npu_interleave_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn pairs of neighbours, and put the first of all pairs before the second of all.

    Args:
        x: [B, N, S, D].
        cos: [B, 1, S, D] or broadcast to it, each value for the pair's first and second in the output's order.
        sin: as cos.
    """
    first, second = x[..., ::2], x[..., 1::2]
    turned = torch.cat((first, second), -1) * cos + torch.cat((-second, first), -1) * sin
    return turned.to(x.dtype)


@given(NPU, "npu_rotary_mul")
def npu_rotary_mul(
    self: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, rotary_mode: str = "half"
) -> torch.Tensor:
    """Turn pairs, half with half or neighbours, by cosines and sines of full width.

    Raises:
        NotImplementedError: another mode.
    """
    if rotary_mode == "half":
        first, second = self.chunk(2, -1)
        other = torch.cat((-second, first), -1)
    elif rotary_mode == "interleave":
        other = torch.stack((-self[..., 1::2], self[..., ::2]), -1).flatten(-2)
    else:
        msg = f"npu_rotary_mul: rotary_mode is {rotary_mode!r}; expected 'half' or 'interleave'"
        raise NotImplementedError(msg)
    return (self * r1 + other * r2).to(self.dtype)


@given(NPU, "npu_kv_rmsnorm_rope_cache")
def npu_kv_rmsnorm_rope_cache(
    kv: torch.Tensor,
    gamma: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    index: torch.Tensor,
    k_cache: torch.Tensor,
    ckv_cache: torch.Tensor,
    *,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norm the latent part of each token, turn the other, and write both to their slots.

    Args:
        kv: [B, 1, S, L + D].
        gamma: [L].
        cos: [B, 1, S, D].
        sin: as cos.
        index: int64 [B · S], slots; below 0 is padding.
        k_cache: [blocks, block size, 1, D], written.
        ckv_cache: [blocks, block size, 1, L], written.
        epsilon: of the norm.
        cache_mode: PA or PA_BNSD.
        is_output_kv: whether the last two outputs are wanted.

    Returns:
        both caches, then what was turned [B, 1, S, D] and normed [B, 1, S, L]; undefined unless wanted.

    Raises:
        NotImplementedError: another mode.
    """
    if cache_mode not in _PAGED:
        msg = f"npu_kv_rmsnorm_rope_cache: cache_mode is {cache_mode!r}; expected {' or '.join(_PAGED)}"
        raise NotImplementedError(msg)
    latent, other = kv[..., : len(gamma)], kv[..., len(gamma) :]
    normed = npu_rms_norm(latent, gamma, epsilon)[0]
    turned = npu_interleave_rope(other, cos, sin)
    cache.write(k_cache, turned.flatten(0, 2), index)
    cache.write(ckv_cache, normed.flatten(0, 2), index)
    if not is_output_kv:
        turned, normed = torch.full_like(turned, torch.nan), torch.full_like(normed, torch.nan)
    return k_cache, ckv_cache, turned, normed


@given(NPU, "npu_transpose_batchmatmul", ignored=("batch_split_factor",))
def npu_transpose_batchmatmul(
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    *,
    perm_x1: Sequence[int] | None = None,
    perm_x2: Sequence[int] | None = None,
    perm_y: Sequence[int] | None = None,
) -> torch.Tensor:
    """Multiply matrix by matrix, [B, M, K] by [B, K, N] once their axes are ordered as asked, and order the result's."""
    product = torch.bmm(
        input.permute(*perm_x1) if perm_x1 else input, weight.permute(*perm_x2) if perm_x2 else weight
    )
    return product.permute(*perm_y).contiguous() if perm_y else product


@given(ATB, "atb.npu_paged_cache_load")
def npu_paged_cache_load(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    seq_starts: torch.Tensor | None = None,
    key: torch.Tensor,
    value: torch.Tensor,
) -> None:
    """Read a part of each sequence from the paged cache, one after the other.

    Args:
        key_cache: [blocks, block size, …].
        value_cache: as key_cache.
        block_table: int32 [sequences, blocks of one].
        context_lens: int32 [sequences], how many tokens of each.
        seq_starts: int32 [sequences], from which one on; None for 0.
        key: [sum of context_lens, …], written.
        value: as key.
    """
    size = key_cache.shape[1]
    starts = torch.zeros_like(context_lens) if seq_starts is None else seq_starts
    end = 0
    for row, (first, number) in enumerate(zip(starts.tolist(), context_lens.tolist(), strict=True)):
        at = torch.arange(first, first + number)
        block, place = block_table[row].long()[at // size], at % size
        for read, written in ((key_cache, key), (value_cache, value)):
            written[end : end + number] = read[block, place].view(number, *written.shape[1:])
        end += number


@given(NPU, "npu_gather_pa_kv_cache")
def npu_gather_pa_kv_cache(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    seq_offset: torch.Tensor | None = None,
) -> None:
    """Do what `npu_paged_cache_load` does, by other names."""
    npu_paged_cache_load(
        key_cache, value_cache, block_tables, seq_lens, seq_starts=seq_offset, key=key, value=value
    )


@given(ATB, "atb.npu_ring_mla")
def npu_ring_mla(
    *,
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    k_nope: torch.Tensor,
    k_rope: torch.Tensor,
    value: torch.Tensor,
    seqlen: torch.Tensor,
    qk_scale: float,
    mask_type: str,
    calc_type: str,
    output: torch.Tensor,
    softmax_lse: torch.Tensor,
    pre_out: torch.Tensor | None = None,
    prev_lse: torch.Tensor | None = None,
    **_: object,
) -> None:
    """Attend to one more part of the keys, and join that with what the parts before gave.

    Args:
        q_nope: [T, heads, D].
        q_rope: [T, heads, R].
        k_nope: [T', heads, D].
        k_rope: [T', heads, R].
        value: [T', heads, V].
        seqlen: int32 [sequences], or [2, sequences] where keys are not as many as queries.
        qk_scale: of the products.
        mask_type: mask_type_triu (causal) or no_mask.
        calc_type: calc_type_first_ring, or calc_type_default with the parts before.
        output: [T, heads, V], written.
        softmax_lse: float32 [heads, T], written: logarithms of the sums of exponentials.
        pre_out: output of the parts before.
        prev_lse: their logarithms.

    Raises:
        NotImplementedError: another mask or calculation.
    """
    first = calc_type == "calc_type_first_ring"
    masks = ("mask_type_triu", "no_mask")
    if mask_type not in masks or (
        not first and (calc_type != "calc_type_default" or pre_out is None or prev_lse is None)
    ):
        msg = (
            f"npu_ring_mla: {mask_type}, {calc_type}; expected one of {masks}, and a first ring or one before"
        )
        raise NotImplementedError(msg)
    query, keys = torch.cat((q_nope, q_rope), -1), torch.cat((k_nope, k_rope), -1)
    both = seqlen if seqlen.dim() > 1 else torch.stack((seqlen, seqlen))
    row = column = 0
    for queries, length in both.t().tolist():
        rows, columns = slice(row, row + queries), slice(column, column + length)
        row, column = row + queries, column + length
        if length == 0:
            continue
        out, lse = attend(query[rows], keys[columns], value[columns], qk_scale, causal=mask_type == masks[0])
        if not first and pre_out is not None and prev_lse is not None:
            before = prev_lse[:, rows].t()
            total = torch.logaddexp(before, lse)
            out = pre_out[rows].float() * (before - total).exp().unsqueeze(-1) + out * (
                lse - total
            ).exp().unsqueeze(-1)
            lse = total
        output[rows] = out.to(output.dtype)
        softmax_lse[:, rows] = lse.t()
