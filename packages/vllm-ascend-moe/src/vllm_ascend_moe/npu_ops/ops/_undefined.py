# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a twin writes where the op leaves its output undefined: NaN, or a number that no id or count is."""

from __future__ import annotations

import torch


def undefined(*shape: int, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a tensor in which nothing is defined yet.

    Args:
        shape: of it.
        like: on whose device it is.
        dtype: of it; None for that of `like`.
    """
    return spoil(torch.empty(shape, dtype=dtype or like.dtype, device=like.device))


def undefined_like(like: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape and dtype in which nothing is defined."""
    return spoil(torch.empty_like(like))


def spoil(tensor: torch.Tensor) -> torch.Tensor:
    """Make all of a tensor, or a view of one, undefined."""
    if tensor.dtype.is_floating_point:
        return tensor.fill_(torch.nan)
    return tensor.fill_(torch.iinfo(tensor.dtype).min)
