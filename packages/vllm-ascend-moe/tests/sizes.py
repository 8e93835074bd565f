# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the ops share: seeded tensors, and a watch on how large an op's temporaries are."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A rounding step of each dtype, with room for a few.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def choose(tokens: int, top_k: int, experts: int, seed: int) -> torch.Tensor:
    """Return different experts for each token, int32 [T, K]."""
    order = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return order[:, :top_k].to(torch.int32)


class LargestOutput(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most elements that any operation wrote to a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's signature
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(output, torch.Tensor):
                self.elements = max(self.elements, output.untyped_storage().nbytes() // output.element_size())
        return result
