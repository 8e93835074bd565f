# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_npu._registry import ATB, NPU, given

if TYPE_CHECKING:
    from collections.abc import Sequence


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, halves: bool) -> torch.Tensor:
    """Turn pairs of values.

    Args:
        x: [..., D].
        cos: [..., D / 2], broadcast to x.
        sin: as cos.
        halves: whether value i is paired with D / 2 + i; else 2 i with 2 i + 1.
    """
    if halves:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)


@given(ATB, "_npu_rotary_embedding")
def npu_rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox_style: bool = True,
) -> None:
    """Turn query and key in place.

    Args:
        positions: [T], rows of the cache.
        query: [T, heads · head_size].
        key: [T, heads · head_size].
        head_size: D.
        cos_sin_cache: [positions, rotated], cosines in the first half; heads' values past `rotated` stay.
        is_neox_style: pairs are halves, else neighbours.
    """
    cos, sin = cos_sin_cache[positions.long()].unsqueeze(1).chunk(2, -1)
    for x in (query, key):
        turned = x.view(x.shape[0], -1, head_size)[..., : cos_sin_cache.shape[-1]]
        turned.copy_(rotate(turned, cos.to(x.dtype), sin.to(x.dtype), halves=is_neox_style))


@given(NPU, "npu_mrope")
def npu_mrope(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    head_size: int,
    *,
    mrope_section: Sequence[int] | None = None,
    rotary_mode: str = "half",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query and key turned by one row of positions.

    Args:
        positions: [T]; rows for several axes are refused.
        query: [T, heads · head_size].
        key: [T, heads · head_size].
        cos_sin_cache: [positions, rotated].
        head_size: D.
        mrope_section: none or zeros.
        rotary_mode: "half" or "interleave".

    Raises:
        NotImplementedError: positions have several axes.
    """
    if positions.dim() != 1 or any(mrope_section or ()):
        msg = f"npu_mrope: positions are {list(positions.shape)}; expected [T], without mrope_section"
        raise NotImplementedError(msg)
    query, key = query.clone(), key.clone()
    npu_rotary_embedding(positions, query, key, head_size, cos_sin_cache, rotary_mode == "half")
    return query, key
