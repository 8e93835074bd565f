# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_moe_init_routing_v2`: sort token rows by expert and count them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm_ascend_moe.npu_ops.ops._op import op, refuse
from vllm_ascend_moe.npu_ops.ops._undefined import undefined
from vllm_ascend_moe.npu_ops.ops.dynamic_quant import npu_dynamic_quant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # (expert_idx, start, end) → active entries, counts [end − start], token and entry of each sorted row, and
    # the row of each entry.
    Sort = Callable[
        [torch.Tensor, int, int], tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    ]

_NAME = "npu_moe_init_routing_v2"


@op(
    "npu_moe_init_routing_v2(Tensor x, Tensor expert_idx, *, Tensor? scale=None, Tensor? offset=None, "
    "int active_num=-1, int expert_capacity=-1, int expert_num=-1, int drop_pad_mode=0, "
    "int expert_tokens_num_type=0, bool expert_tokens_num_flag=False, int quant_mode=-1, "
    "int[2] active_expert_range=[], int row_idx_type=0, int? x_dtype=None) -> (Tensor, Tensor, Tensor, Tensor)"
)
def npu_moe_init_routing_v2(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,  # noqa: ARG001 - has no meaning without drop_pad_mode
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Copy each token's row once for each of its active experts, in the order of the experts.

    Let A be the number of entries of expert_idx in the active range; −1 never is.

    Args:
        x: [T, H], float16, bfloat16, float32 or int8.
        expert_idx: int32 [T, K].
        scale: float32 [T], carried along with the rows; only without quantisation.
        offset: None.
        active_num: −1, 0 or T·K: all rows. Fewer is refused by this twin.
        expert_capacity: unused.
        expert_num: number of experts.
        drop_pad_mode: 0.
        expert_tokens_num_type: cumulative sums (0), counts (1), or pairs of id and count (2).
        expert_tokens_num_flag: whether the counts are wanted.
        quant_mode: −1 for rows as they are, 1 for rows quantised to int8 each with a scale of its own.
        active_expert_range: [start, end) of the active experts; empty for all.
        row_idx_type: what the second output holds: see there.

    Returns:
        expanded_x: [T·K, H], x's dtype or int8; rows from A on are undefined (here NaN, or −128).
        expanded_row_idx: int32 [T·K]. Type 0 (gather): for entry t·K + k of expert_idx the row of
            expanded_x, or −1. Type 1 (scatter): for each row of expanded_x the entry; undefined from A on (here the
            least int32).
        counts: int64 [end − start]; type 2: [expert_num, 2], followed by pairs of zeros.
        expanded_scale: float32 [T·K]; undefined (here NaN) from A on, and everywhere without a scale.

    Raises:
        ValueError: an argument that this twin does not take.
    """
    return _init_routing(
        _sort,
        undefined,
        x,
        expert_idx,
        scale,
        offset,
        active_num,
        expert_num,
        drop_pad_mode,
        expert_tokens_num_type,
        expert_tokens_num_flag,
        quant_mode,
        active_expert_range,
        row_idx_type,
    )


@npu_moe_init_routing_v2.by_kernel
def _fast(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,  # noqa: ARG001 - as in the twin
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return _init_routing(
        _sort_by_counting,
        _unwritten,
        x,
        expert_idx,
        scale,
        offset,
        active_num,
        expert_num,
        drop_pad_mode,
        expert_tokens_num_type,
        expert_tokens_num_flag,
        quant_mode,
        active_expert_range,
        row_idx_type,
    )


def _init_routing(  # noqa: PLR0917 - the op's
    sort: Sort,
    new: Callable[..., torch.Tensor],
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    active_num: int,
    expert_num: int,
    drop_pad_mode: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,  # noqa: FBT001
    quant_mode: int,
    active_expert_range: Sequence[int],
    row_idx_type: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    entries = expert_idx.numel()
    start, end = active_expert_range or (0, expert_num)
    _refuse_unsupported(
        scale, offset, active_num, entries, drop_pad_mode, expert_tokens_num_type, quant_mode, row_idx_type
    )
    if not 0 <= start < end <= expert_num:
        expected = f"0 ≤ start < end ≤ expert_num ({expert_num})"
        raise refuse(_NAME, "active_expert_range", [start, end], expected)
    # 1. Sort the entries by expert; within an expert in the order of tokens.
    active, counts, source, order, row = sort(expert_idx, start, end)
    # 2. Copy the rows; what is past them is undefined.
    rows, row_scale = x, scale
    if quant_mode == 1:
        rows, row_scale = npu_dynamic_quant.twin(x)
    expanded_x = new(entries, x.shape[1], like=rows)
    torch.index_select(rows, 0, source[:active], out=expanded_x[:active])
    expanded_scale = new(entries, like=x, dtype=torch.float32)
    if row_scale is not None:
        expanded_scale[:active] = row_scale.index_select(0, source[:active])
    # 3. The way back, and the counts.
    row_idx = row
    if row_idx_type == 1:
        row_idx = new(entries, like=row)
        row_idx[:active] = order[:active]
    if not expert_tokens_num_flag:
        return expanded_x, row_idx, counts[:0].sum(), expanded_scale
    tokens = _count(counts, expert_tokens_num_type, start, expert_num)
    return expanded_x, row_idx, tokens, expanded_scale


def _unwritten(*shape: int, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return memory as it is: writing what nobody may read costs as much as copying rows."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _sort(
    expert_idx: torch.Tensor, start: int, end: int
) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort stably by expert, inactive entries last."""
    top_k = expert_idx.shape[1]
    flat = expert_idx.reshape(-1)
    inactive = (flat < start) | (flat >= end)
    key = torch.where(inactive, end - start, flat - start)
    order = torch.argsort(key, stable=True)
    counts = torch.bincount(key, minlength=end - start + 1)[: end - start]
    active = int(counts.sum())
    source = order.div(top_k, rounding_mode="floor") if top_k else order
    row = torch.full_like(flat, -1, dtype=torch.int32)
    row[order[:active]] = torch.arange(active, dtype=torch.int32, device=row.device)
    return active, counts, source, order, row


def _sort_by_counting(
    expert_idx: torch.Tensor, start: int, end: int
) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do the same by a kernel, on a CPU."""
    from vllm_ascend_moe.npu_ops.kernels import init_routing as kernel

    counts = torch.empty(end - start, dtype=torch.int64)
    # Three in one: source, order, row.
    indices = torch.empty(3, expert_idx.numel(), dtype=torch.int32)
    source, order, row = indices.unbind(0)
    active = kernel.sort_by_expert(
        expert_idx.contiguous().numpy(), start, counts.numpy(), source.numpy(), order.numpy(), row.numpy()
    )
    return active, counts, source, order, row


def _refuse_unsupported(
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    active_num: int,
    entries: int,
    drop_pad_mode: int,
    expert_tokens_num_type: int,
    quant_mode: int,
    row_idx_type: int,
) -> None:
    for quantity, value, expected, wrong in (
        ("offset", "given", "None", offset is not None),
        ("scale", "given", "None with quant_mode 1", scale is not None and quant_mode == 1),
        ("active_num", active_num, f"-1, 0 or at least {entries}", 0 < active_num < entries),
        ("drop_pad_mode", drop_pad_mode, "0", drop_pad_mode != 0),
        (
            "expert_tokens_num_type",
            expert_tokens_num_type,
            "0, 1 or 2",
            expert_tokens_num_type not in {0, 1, 2},
        ),
        ("quant_mode", quant_mode, "-1 or 1", quant_mode not in {-1, 1}),
        ("row_idx_type", row_idx_type, "0 or 1", row_idx_type not in {0, 1}),
    ):
        if wrong:
            raise refuse(_NAME, quantity, value, expected)


def _count(counts: torch.Tensor, kind: int, start: int, expert_num: int) -> torch.Tensor:
    if kind == 0:
        return counts.cumsum(0)
    if kind == 1:
        return counts
    pairs = counts.new_zeros(expert_num, 2)
    used = counts.nonzero().squeeze(1)
    pairs[: len(used)] = torch.stack([used + start, counts[used]], dim=1)
    return pairs
