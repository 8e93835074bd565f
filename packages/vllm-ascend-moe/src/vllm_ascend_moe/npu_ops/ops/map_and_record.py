# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Logical → physical expert ids and their count at once: one pass on a CPU, one Triton kernel on a GPU.

The Triton kernel is written for NPUs too, but has not been run on one: there, plain torch is called.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_ascend_moe.npu_ops.ops._op import can_use_kernel
from vllm_ascend_moe.npu_ops.ops.map_experts import map_to_physical, take_turns
from vllm_ascend_moe.npu_ops.ops.record_load import record_load

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NO_MASK = np.empty(0, dtype=np.bool_)


def map_and_record(
    topk_ids: torch.Tensor,
    routing_table: torch.Tensor,
    expert_load: torch.Tensor,
    *,
    token_offset: int = 0,
    num_tokens: int | torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do `map_to_physical`, then `record_load` of its result.

    Args:
        topk_ids: logical ids, int32 or int64 [T, K]; −1 (inactive) stays −1 and is not counted.
        routing_table: int32 [rows, E], or a log2phy [E].
        expert_load: int32 or int64 [P], changed in place.
        token_offset: index of the first token, where a batch is handled in parts.
        num_tokens: rows past it are padding and not counted; None if there is none.
        counted: bool [up to T], rows that are counted; those past its end are not. None for all of them.

    Returns:
        physical ids, [T, K], dtype of topk_ids.

    Raises:
        IndexError: an id, or what the table says of it, does not exist (checked on a CPU).
    """
    table = routing_table if routing_table.dim() > 1 else routing_table.unsqueeze(0)
    if can_use_kernel(topk_ids):
        from vllm_ascend_moe.npu_ops.kernels import map_and_record as kernel

        physical = torch.empty_like(topk_ids, memory_format=torch.contiguous_format)
        stopped = kernel.by_table(
            topk_ids.contiguous().numpy(),
            table.to(torch.int32).contiguous().numpy(),
            token_offset,
            *_count_these(topk_ids, num_tokens, counted),
            expert_load.numpy(),
            physical.numpy(),
        )
        _check(stopped, topk_ids, table.shape[1], expert_load)
        return physical
    if counted is None and topk_ids.is_cuda and _has_triton():
        from vllm_ascend_moe.npu_ops.kernels import triton_map_and_record as triton_kernel

        if triton_kernel.can_add_to(expert_load):
            return triton_kernel.map_and_record(
                topk_ids, table, expert_load, token_offset=token_offset, num_tokens=num_tokens
            )
    physical = map_to_physical(topk_ids, table, token_offset=token_offset)
    record_load(expert_load, _only(physical, counted), num_tokens=num_tokens)
    return physical


def take_turns_and_record(
    topk_ids: torch.Tensor,
    slots: torch.Tensor,
    count: torch.Tensor,
    expert_load: torch.Tensor,
    *,
    num_tokens: int | torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do `take_turns`, then `record_load` of its result.

    Args:
        topk_ids: logical ids, int32 or int64 [T, K]; −1 (inactive) stays −1 and is not counted.
        slots: int64 [E, N], each expert's slots in the order that they are taken.
        count: int64 [E], how many of them are used.
        expert_load: int32 or int64 [P], changed in place.
        num_tokens: as in `map_and_record`.
        counted: as in `map_and_record`.

    Returns:
        physical ids, [T, K], dtype of topk_ids.

    Raises:
        IndexError: as in `map_and_record`.
    """
    if can_use_kernel(topk_ids):
        from vllm_ascend_moe.npu_ops.kernels import map_and_record as kernel

        physical = torch.empty_like(topk_ids, memory_format=torch.contiguous_format)
        stopped = kernel.by_turns(
            topk_ids.contiguous().numpy(),
            slots.long().contiguous().numpy(),
            count.long().contiguous().numpy(),
            *_count_these(topk_ids, num_tokens, counted),
            expert_load.numpy(),
            physical.numpy(),
        )
        _check(stopped, topk_ids, len(slots), expert_load)
        return physical
    physical = take_turns(topk_ids, slots, count)
    record_load(expert_load, _only(physical, counted), num_tokens=num_tokens)
    return physical


def _count_these(
    topk_ids: torch.Tensor, num_tokens: int | torch.Tensor | None, counted: torch.Tensor | None
) -> tuple[NDArray[np.bool_], int]:
    """Return a kernel's mask of counted tokens, empty for all, and the number of tokens that may be counted."""
    limit = len(topk_ids) if num_tokens is None else int(num_tokens)
    if counted is None:
        return _NO_MASK, limit
    return counted.contiguous().numpy(), min(limit, len(counted))


def _check(stopped: int, topk_ids: torch.Tensor, num_experts: int, expert_load: torch.Tensor) -> None:
    if stopped >= 0:
        expert = topk_ids.reshape(-1)[stopped].item()
        msg = (
            f"topk_ids has {expert} at entry {stopped}; expected logical ids below {num_experts}, mapped to "
            f"physical ones below {len(expert_load)}"
        )
        raise IndexError(msg)


def _only(physical: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    if counted is None:
        return physical
    return physical[: len(counted)].masked_fill(~counted[: len(physical)].unsqueeze(1), -1)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
