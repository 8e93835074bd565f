# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Logical → physical ids and their count in one Triton kernel, for CUDA and, by triton-ascend, for NPUs.

Importing this module loads Triton. The kernel keeps to what both compilers have, by the documentation of
triton-ascend: one axis of programs, 32-bit arithmetic, masked loads and stores, atomic additions of int32 (an
NPU has none of int64).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Entries that a program handles at once.
BLOCK = 1024
# On an NPU programs are best as many as there are vector cores, and each takes several blocks.
_MAX_PROGRAMS = {"npu": 40}


# Triton looks the names of annotations up, so there are none but its own.
@triton.jit  # type: ignore[untyped-decorator]
def map_and_record_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201
    ids,  # noqa: ANN001
    table,  # noqa: ANN001
    load,  # noqa: ANN001
    physical,  # noqa: ANN001
    num_tokens,  # noqa: ANN001
    entries,  # noqa: ANN001
    token_offset,  # noqa: ANN001
    rows,  # noqa: ANN001
    num_experts,  # noqa: ANN001
    num_physical,  # noqa: ANN001
    top_k: tl.constexpr,
    bounded: tl.constexpr,
    block: tl.constexpr,
):
    """Map entries of ids [T, K] and count them, a block at a time.

    Args:
        ids: int32 or int64 [T, K].
        table: int32 [rows, E].
        load: int32 [P], added to.
        physical: [T, K], written, dtype of ids.
        num_tokens: integer [1], how many tokens are counted; not read unless ``bounded``.
        entries: T·K.
        token_offset: index of the first token, below rows.
        rows: of the table.
        num_experts: E.
        num_physical: P.
        top_k: K.
        bounded: whether num_tokens is given.
        block: entries at a time, a power of two.
    """
    one = tl.full([block], 1, tl.int32)
    for first in range(tl.program_id(0) * block, entries, tl.num_programs(0) * block):
        entry = first + tl.arange(0, block)
        exists = entry < entries
        token = entry // top_k
        expert = tl.load(ids + entry, mask=exists, other=-1).to(tl.int32)
        # An id past the last expert is left as it is and not counted: nothing past the table may be read.
        known = exists & (expert >= 0) & (expert < num_experts)
        row = (token + token_offset) % rows
        slot = tl.load(table + row * num_experts + expert, mask=known, other=0)
        slot = tl.where(known, slot, expert)
        tl.store(physical + entry, slot.to(physical.dtype.element_ty), mask=exists)
        counted = known & (slot >= 0) & (slot < num_physical)
        if bounded:
            counted = counted & (token < tl.load(num_tokens).to(tl.int32))
        tl.atomic_add(load + tl.where(counted, slot, 0), one, mask=counted)


def can_add_to(expert_load: torch.Tensor) -> bool:
    """Return whether the kernel can count into a tensor."""
    return expert_load.dtype == torch.int32 and expert_load.is_contiguous()


def map_and_record(
    topk_ids: torch.Tensor,
    table: torch.Tensor,
    expert_load: torch.Tensor,
    *,
    token_offset: int = 0,
    num_tokens: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Launch the kernel; see `vllm_ascend_moe.npu_ops.ops.map_and_record`. It can be captured in a graph.

    Args:
        topk_ids: int32 or int64 [T, K], on a GPU or NPU.
        table: [rows, E].
        expert_load: int32 [P], contiguous, changed in place.
        token_offset: index of the first token.
        num_tokens: an int, or an integer tensor of one element on the same device; None for all.

    Returns:
        physical ids, [T, K], dtype of topk_ids.

    Raises:
        ValueError: expert_load is not what the kernel can add to.
    """
    ids = topk_ids.contiguous()
    physical = torch.empty_like(ids)
    entries = ids.numel()
    if entries == 0:
        return physical
    if not can_add_to(expert_load):
        found = f"{expert_load.dtype} with strides {expert_load.stride()}"
        msg = f"expert_load is {found}; expected a contiguous torch.int32"
        raise ValueError(msg)
    programs = min(triton.cdiv(entries, BLOCK), _MAX_PROGRAMS.get(ids.device.type, entries))
    bounded = num_tokens is not None
    if isinstance(num_tokens, int):
        num_tokens = torch.tensor([num_tokens], device=ids.device)
    rows, num_experts = table.shape
    map_and_record_kernel[(programs,)](
        ids,
        table.to(torch.int32).contiguous(),
        expert_load,
        physical,
        num_tokens if bounded else expert_load,
        entries,
        token_offset % rows,
        rows,
        num_experts,
        len(expert_load),
        top_k=ids.shape[1],
        bounded=bounded,
        block=BLOCK,
    )
    return physical
