# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""RMS norms: computed in float32, rounded, then multiplied by gamma in the input's dtype."""

from __future__ import annotations

import torch

from torch_npu._registry import CUSTOM, NPU, given


@given(NPU, "npu_rms_norm")
def npu_rms_norm(
    self: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x / rms(x) · gamma, and 1 / rms(x) in float32 [..., 1]."""
    wide = self.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * rstd).to(self.dtype) * gamma, rstd


@given(NPU, "npu_add_rms_norm")
def npu_add_rms_norm(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the norm of x1 + x2, its 1 / rms, and the sum."""
    added = x1 + x2
    normed, rstd = npu_rms_norm(added, gamma, epsilon)
    return normed, rstd, added


@given(CUSTOM, "npu_add_rms_norm_bias")
def npu_add_rms_norm_bias(
    x1: torch.Tensor,
    x2: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor | None = None,
    epsilon: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the norm of x1 + x2 plus beta, its 1 / rms, and the sum."""
    normed, rstd, added = npu_add_rms_norm(x1, x2, gamma, epsilon)
    return normed if beta is None else normed + beta, rstd, added
