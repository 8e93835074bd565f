# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Muon for matrices, also for stacks of them: each expert's matrix gets an update of its own.

Algorithm: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. torch's own
takes single matrices only, but transformers keeps the experts of a layer in one tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

# Coefficients of the quintic iteration, from the source above.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_TINY = 1e-7


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring all singular values near 1 by Newton-Schulz iterations.

    Args:
        matrices: [..., rows, columns], float32.
        steps: iterations.

    Returns:
        The same shape; singular values within about 0.7 and 1.2, singular vectors kept.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + _TINY)
    first, second, third = _QUINTIC
    for _ in range(steps):
        square = x @ x.mT
        x = first * x + (second * square + third * square @ square) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalized before each step."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], rate: float, momentum: float = 0.95) -> None:
        """Take the matrices, or stacks of them.

        Args:
            parameters: each [rows, columns] or [experts, rows, columns].
            rate: learning rate, in units of a matrix's singular values.
            momentum: share of the last step's momentum that is kept.
        """
        super().__init__(parameters, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # no closures here
        """Move each matrix by its orthogonalized (Nesterov) momentum."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalize(weight.grad.lerp(momentum, group["momentum"]))
                scale = max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5
                weight.add_(update, alpha=-group["lr"] * scale)
