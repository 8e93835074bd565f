# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_npu.kernels import given
from torch_npu.ops.rotary import rotate

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


@given
def _triton_rope(
    grid: Sequence[int],  # noqa: ARG001 - its programs share the rows
    *,
    q_ptr: torch.Tensor,
    k_ptr: torch.Tensor,
    cos_ptr: torch.Tensor | None,
    sin_ptr: torch.Tensor | None,
    cos_sin_ptr: torch.Tensor | None,
    pos_ptr: torch.Tensor | None,
    num_tokens: int,
    rope_dim: int,
    IS_NEOX_STYLE: bool,  # noqa: N803
    **_: object,
) -> None:
    """Turn queries and keys, [T, heads, D]: by a row of cosines for each token, or by its position's, sines after cosines."""
    half = rope_dim // 2
    if cos_sin_ptr is not None and pos_ptr is not None:
        row = cos_sin_ptr[pos_ptr[:num_tokens].long()]
        cos, sin = row[:, :half], row[:, half:rope_dim]
    else:
        assert cos_ptr is not None, "cosines by token or by position"
        assert sin_ptr is not None, "sines by token or by position"
        cos, sin = cos_ptr[:num_tokens, :half], sin_ptr[:num_tokens, :half]
    cos, sin = cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    for heads in (q_ptr, k_ptr):
        turned = heads[:num_tokens, :, :rope_dim]
        turned.copy_(rotate(turned.float(), cos, sin, halves=IS_NEOX_STYLE))
