# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Functions of torch_npu's ATB plugin, which have no schema in its wheel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_npu._registry import ATB, given

if TYPE_CHECKING:
    import torch


@given(ATB, "_npu_matmul_add_fp32")
def npu_matmul_add_fp32(x: torch.Tensor, weight: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Add xᵀ · weight to c in place, in float32.

    Args:
        x: [K, M].
        weight: [K, N].
        c: float32 [M, N], changed.
    """
    return c.add_(x.float().t() @ weight.float())
