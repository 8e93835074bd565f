# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Count tokens by expert, logical or physical; plain torch on every device."""

from __future__ import annotations

import torch


def record_load(
    expert_load: torch.Tensor, topk_ids: torch.Tensor, *, num_tokens: int | torch.Tensor | None = None
) -> None:
    """Add the tokens routed to each expert to ``expert_load``.

    Shapes do not depend on the values, so it can be captured in a graph.

    Args:
        expert_load: int32 or int64 [E] or [P], changed in place.
        topk_ids: int32 or int64 [T, K], logical or physical ids as expert_load is; −1 is not counted.
        num_tokens: rows past it are padding and not counted (int, or integer tensor of no dimensions);
            None if there is none.
    """
    counted = topk_ids >= 0
    if num_tokens is not None:
        token = torch.arange(len(topk_ids), device=topk_ids.device)
        counted &= (token < num_tokens).unsqueeze(1)
    # Padding may hold ids of any kind.
    ids = torch.where(counted, topk_ids, 0).reshape(-1).long()
    expert_load.scatter_add_(0, ids, counted.reshape(-1).to(expert_load.dtype))
