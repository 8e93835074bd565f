# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_grouped_matmul`: each expert's rows times its weights; also int8 with scales (W8A8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from vllm_ascend_moe.limits import MAX_TENSOR_LIST
from vllm_ascend_moe.ops._op import op, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = "npu_grouped_matmul"
# Bytes to which torch's grouped product wants the axes aligned.
_ALIGNMENT = 16


@op(
    "npu_grouped_matmul(Tensor[] x, Tensor[] weight, *, Tensor[]? bias=None, Tensor[]? scale=None, "
    "Tensor[]? offset=None, Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, "
    "Tensor[]? per_token_scale=None, Tensor? group_list=None, Tensor[]? activation_input=None, "
    "Tensor[]? activation_quant_scale=None, Tensor[]? activation_quant_offset=None, int? split_item=0, "
    "int? group_type=None, int? group_list_type=0, int? act_type=0, int[]? tuning_config=None, "
    "int? output_dtype=None, int? x_dtype=None, int? weight_dtype=None, int? scale_dtype=None, "
    "int? per_token_scale_dtype=None) -> Tensor[]"
)
def npu_grouped_matmul(
    x: Sequence[torch.Tensor],
    weight: Sequence[torch.Tensor],
    *,
    bias: Sequence[torch.Tensor] | None = None,
    scale: Sequence[torch.Tensor] | None = None,
    per_token_scale: Sequence[torch.Tensor] | None = None,
    group_list: torch.Tensor | None = None,
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    output_dtype: torch.dtype | int | None = None,
) -> list[torch.Tensor]:
    """Multiply consecutive groups of rows by a matrix each: the grouping of the M axis.

    Args:
        x: one matrix [M, K].
        weight: one tensor [G, K, N], or G matrices [K, N].
        bias: one tensor [G, N], or G vectors [N]; added before the scales.
        scale: with int8: one tensor [G, N], or G vectors [N], by which the products are multiplied.
        per_token_scale: with int8: one vector [M], by which each row is multiplied.
        group_list: int64 [G], rows of each group: see group_list_type.
        split_item: 2 or 3: one output; 0 or 1: one for each group.
        group_type: 0, the M axis.
        group_list_type: cumulative sums (0) or counts (1).
        output_dtype: of int8 products; None for x's dtype. An int is a number of torch's ScalarType.

    Returns:
        One matrix [M, N], in which rows past the last group are undefined; or G matrices.

    Raises:
        ValueError: an argument that this twin does not take.
    """
    if group_type != 0 or group_list is None or len(x) != 1:
        raise refuse(_NAME, "group_type", group_type, "0, with a group_list and one x")
    if group_list_type not in {0, 1}:
        raise refuse(_NAME, "group_list_type", group_list_type, "0 (cumulative sums) or 1 (counts)")
    if len(weight) > MAX_TENSOR_LIST:
        raise refuse(
            _NAME,
            "number of weights",
            len(weight),
            f"at most {MAX_TENSOR_LIST}, or one tensor that stacks them",
        )
    if x[0].dtype == torch.int8 and scale is None:
        raise refuse(_NAME, "scale", None, "scales with int8 x")
    rows = x[0]
    ends = group_list.cumsum(0) if group_list_type == 1 else group_list
    plain = split_item in {2, 3} and output_dtype is None and bias is scale is None
    if plain and (at_once := _all_at_once(rows, weight, ends)) is not None:
        return [at_once]
    weights, biases, scales = _by_group(weight, 3), _by_group(bias, 2), _by_group(scale, 2)
    dtype = _DTYPES[output_dtype] if isinstance(output_dtype, int) else output_dtype or rows.dtype
    product = torch.empty(len(rows), weights[0].shape[1], dtype=dtype, device=rows.device)
    start, parts = 0, []
    for group, end in enumerate(ends.tolist()):
        if end > start:
            part = _multiply(rows[start:end], weights[group], biases[group] if biases else None)
            if scales:
                part = part * scales[group].to(part.dtype)
            if per_token_scale is not None:
                part = part * per_token_scale[0][start:end, None].to(part.dtype)
            product[start:end] = part
        parts.append(product[start:end])
        start = end
    return [product] if split_item in {2, 3} else parts


# The numbers of torch's ScalarType, which torch_npu's newer schemas take.
_DTYPES = {5: torch.float16, 6: torch.float32, 15: torch.bfloat16}


def _all_at_once(
    rows: torch.Tensor, weight: Sequence[torch.Tensor], ends: torch.Tensor
) -> torch.Tensor | None:
    """Multiply all groups in one call of torch's, half as long as a loop over few rows; None where it cannot."""
    if len(weight) != 1 or weight[0].dim() != 3:  # noqa: PLR2004 - [G, K, N]
        return None
    _, inner, outer = weight[0].shape
    aligned = all(size * rows.element_size() % _ALIGNMENT == 0 for size in (inner, outer))
    fits = rows.dtype == weight[0].dtype and rows.dtype in _DTYPES.values() and rows.is_contiguous()
    if rows.device.type != "cpu" or not fits or not aligned or 0 in rows.shape:
        return None
    return functional.grouped_mm(rows, weight[0], offs=ends.to(torch.int32))


def _by_group(tensors: Sequence[torch.Tensor] | None, stacked_dims: int) -> Sequence[torch.Tensor]:
    """Return a tensor for each group, from one that stacks them or from as many; empty for None."""
    if tensors is None:
        return []
    return tensors[0].unbind(0) if tensors[0].dim() == stacked_dims else tensors


def _multiply(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if rows.dtype == torch.int8:
        # Sums of int8 products are exact in float64, which has a fast product on every device.
        product = rows.double() @ weight.double()
        return (product if bias is None else product + bias.double()).float()
    return rows @ weight if bias is None else rows @ weight + bias.to(rows.dtype)
