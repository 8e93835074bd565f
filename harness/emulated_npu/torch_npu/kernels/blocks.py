# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Block tables and slots of the KV cache; the tables of all groups are given by their addresses."""

from __future__ import annotations

import ctypes
import itertools
from typing import TYPE_CHECKING

import torch

from torch_npu.kernels import given

if TYPE_CHECKING:
    from collections.abc import Sequence


def _table(address: int, rows: int, columns: int) -> torch.Tensor:
    """Return the int32 table that is there."""
    memory = (ctypes.c_int32 * (rows * columns)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.int32).view(rows, columns)


@given
def _gather_block_tables_kernel(
    grid: Sequence[int],
    *,
    batch_idx_to_req_idx: torch.Tensor,
    src_block_table_ptrs: torch.Tensor,
    dst_block_table_ptrs: torch.Tensor,
    block_table_strides: torch.Tensor,
    num_blocks_ptr: torch.Tensor,
    num_reqs: int,
    **_: object,
) -> None:
    """Copy the blocks of each request of a batch to the batch's own table; rows of padding become zeros."""
    requests = batch_idx_to_req_idx[:num_reqs].tolist()
    for group in range(grid[0]):
        width = int(block_table_strides[group])
        source = _table(int(src_block_table_ptrs[group]), max(requests, default=0) + 1, width)
        target = _table(int(dst_block_table_ptrs[group]), grid[1], width)
        target[num_reqs:] = 0
        for row, request in enumerate(requests[: grid[1]]):
            count = int(num_blocks_ptr[group, request])
            target[row, :count] = source[request, :count]


@given
def _compute_slot_mappings_kernel(
    grid: Sequence[int],
    *,
    max_num_tokens: int,
    idx_mapping: torch.Tensor,
    query_start_loc: torch.Tensor,
    pos: torch.Tensor,
    block_table_ptrs: torch.Tensor,
    block_table_strides: torch.Tensor,
    kernel_block_sizes: torch.Tensor,
    slot_mappings_ptr: torch.Tensor,
    CP_SIZE: int,  # noqa: N803
    PAD_ID: int,  # noqa: N803
    slot_mapping_enabled: torch.Tensor | None = None,
    **_: object,
) -> None:
    """Write for each token the slot that its position has in its request's blocks; the last program pads."""
    if CP_SIZE != 1:
        msg = f"_compute_slot_mappings_kernel: CP_SIZE is {CP_SIZE}; expected 1: nothing else is emulated"
        raise NotImplementedError(msg)
    starts = query_start_loc[: grid[1]].tolist()
    requests = idx_mapping[: grid[1] - 1].tolist()
    for group in range(grid[0]):
        slots, size = slot_mappings_ptr[group], int(kernel_block_sizes[group])
        slots[starts[-1] : max_num_tokens] = PAD_ID
        if slot_mapping_enabled is not None and not slot_mapping_enabled[group]:
            slots[: starts[-1]] = PAD_ID
            continue
        width = int(block_table_strides[group])
        blocks = _table(int(block_table_ptrs[group]), max(requests, default=0) + 1, width)
        for request, (start, end) in zip(requests, itertools.pairwise(starts), strict=True):
            at = pos[start:end].long()
            slots[start:end] = blocks[request, at // size] * size + at % size
