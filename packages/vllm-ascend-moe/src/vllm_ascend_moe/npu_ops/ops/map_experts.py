# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Logical → physical expert ids, by a routing table or by turns; plain torch on every device."""

from __future__ import annotations

import torch


def map_to_physical(
    topk_ids: torch.Tensor, routing_table: torch.Tensor, *, token_offset: int = 0
) -> torch.Tensor:
    """Map each token's logical experts to the physical experts that it is sent to.

    Args:
        topk_ids: logical ids, int32 or int64 [T, K]; −1 (inactive) stays −1.
        routing_table: int32 [rows, E], see `expert_maps.Placement.routing_table`; a single row is a
            log2phy, and a log2phy [E] may be given as it is.
        token_offset: index of the first token, where a batch is handled in parts.

    Returns:
        physical ids, [T, K], dtype of topk_ids.
    """
    table = routing_table if routing_table.dim() > 1 else routing_table.unsqueeze(0)
    rows, num_experts = table.shape
    ids = topk_ids.clamp(min=0)
    if rows > 1:
        # In 32 bits, where ids are: a table has far fewer entries.
        row = torch.arange(token_offset, token_offset + len(ids), device=ids.device) % rows
        ids = ids + (row * num_experts).to(ids.dtype).unsqueeze(1)
    physical = table.reshape(-1).index_select(0, ids.reshape(-1)).view_as(topk_ids).to(topk_ids.dtype)
    return torch.where(topk_ids < 0, topk_ids, physical)


def take_turns(topk_ids: torch.Tensor, slots: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Map each token's logical experts to physical ones by vLLM's tables: token t takes slot ``t % count``.

    Args:
        topk_ids: logical ids, int32 or int64 [T, K]; −1 (inactive) stays −1.
        slots: int64 [E, N], each expert's slots in the order that they are taken.
        count: int64 [E], how many of them are used.

    Returns:
        physical ids, [T, K], dtype of topk_ids.
    """
    ids = topk_ids.clamp(min=0).long()
    token = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    turn = token % count[ids].clamp(min=1)
    return torch.where(topk_ids < 0, topk_ids, slots[ids, turn].to(topk_ids.dtype))
