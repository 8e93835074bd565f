# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_swiglu`: the gated activation."""

from __future__ import annotations

import torch
from torch.nn import functional

from vllm_ascend_moe.npu_ops.ops._op import op


@op("npu_swiglu(Tensor self, int dim=-1) -> Tensor")
def npu_swiglu(self: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Return silu(first half) · second half, computed in float32 and rounded once.

    Args:
        self: float16, bfloat16 or float32, of even size along ``dim``.
        dim: the axis that is halved.
    """
    gate, up = self.chunk(2, dim=dim)
    if self.dtype == torch.float32:
        return functional.silu(gate).mul_(up)
    return functional.silu(gate.float()).mul_(up).to(self.dtype)
