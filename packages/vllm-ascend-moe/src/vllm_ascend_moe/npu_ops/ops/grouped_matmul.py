# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_grouped_matmul`: each expert's rows times its weights; also int8 with scales (W8A8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional

from vllm_ascend_moe.npu_ops.limits import MAX_TENSOR_LIST
from vllm_ascend_moe.npu_ops.ops._op import op, refuse
from vllm_ascend_moe.npu_ops.ops._undefined import spoil

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
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    act_type: int | None = 0,
    output_dtype: torch.dtype | int | None = None,
) -> list[torch.Tensor]:
    """Multiply consecutive groups of rows by a matrix each: the grouping of the M axis.

    Args:
        x: one matrix [M, K], float or int8.
        weight: one tensor [G, K, N], or G matrices [K, N]; dtype of x.
        bias: one tensor [G, N], or G vectors [N]; added before the scales.
        scale: with int8: one float tensor [G, N], or G vectors [N], by which the products are multiplied.
        per_token_scale: with int8: one float vector [M], by which each row is multiplied.
        group_list: int64 [G], rows of each group: see group_list_type.
        split_item: 2 or 3: one output; None, 0 or 1: one for each group.
        group_type: 0, the M axis.
        group_list_type: None or 0 (cumulative sums), or 1 (counts).
        act_type: None or 0, no activation.
        output_dtype: of int8 products, int32 only for those without scales; None for x's dtype. An int is a
            number of torch's ScalarType.

    Returns:
        One matrix [M, N], in which rows past the last group are undefined (here NaN, or the least int32); or
        G matrices.

    Raises:
        ValueError: an argument that this twin does not take.
    """
    products = _fast(
        x,
        weight,
        bias=bias,
        scale=scale,
        per_token_scale=per_token_scale,
        group_list=group_list,
        split_item=split_item,
        group_type=group_type,
        group_list_type=group_list_type,
        act_type=act_type,
        output_dtype=output_dtype,
    )
    if split_item in {2, 3} and group_list is not None:
        last = group_list.sum() if group_list_type == 1 else group_list[-1]
        spoil(products[0][int(last) :])
    return products


@npu_grouped_matmul.on_cpu
def _fast(
    x: Sequence[torch.Tensor],
    weight: Sequence[torch.Tensor],
    *,
    bias: Sequence[torch.Tensor] | None = None,
    scale: Sequence[torch.Tensor] | None = None,
    per_token_scale: Sequence[torch.Tensor] | None = None,
    group_list: torch.Tensor | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    act_type: int | None = 0,
    output_dtype: torch.dtype | int | None = None,
) -> list[torch.Tensor]:
    """Do the same, and leave undefined rows as the memory is: the device writes nothing there either."""
    dtype = _DTYPES.get(output_dtype) if isinstance(output_dtype, int) else output_dtype
    if dtype is None and output_dtype is not None:
        raise refuse(_NAME, "output_dtype", output_dtype, f"one of {_DTYPES}")
    _refuse_unsupported(x, weight, group_list, group_type, group_list_type, act_type)
    _refuse_dtypes(x[0], weight, scale, per_token_scale, dtype)
    rows, counts = x[0], cast("torch.Tensor", group_list)
    ends = counts.cumsum(0) if group_list_type == 1 else counts
    plain = split_item in {2, 3} and dtype is None and bias is scale is None
    if plain and (at_once := _all_at_once(rows, weight, ends)) is not None:
        return [at_once]
    weights, biases, scales = _by_group(weight, 3), _by_group(bias, 2), _by_group(scale, 2)
    if len(weights) != len(ends):
        raise refuse(_NAME, "number of groups", len(ends), f"{len(weights)}, as many as matrices")
    product = torch.empty(len(rows), weights[0].shape[1], dtype=dtype or rows.dtype, device=rows.device)
    start, parts = 0, []
    for group, stop in enumerate(ends.tolist()):
        if stop > start:
            part = _multiply(rows[start:stop], weights[group], biases[group] if biases else None)
            if scales:
                part = part.float() * scales[group].float()
            if per_token_scale is not None:
                part = part * per_token_scale[0][start:stop, None].float()
            product[start:stop] = part
        parts.append(product[start:stop])
        start = stop
    return [product] if split_item in {2, 3} else parts


def _refuse_unsupported(
    x: Sequence[torch.Tensor],
    weight: Sequence[torch.Tensor],
    group_list: torch.Tensor | None,
    group_type: int | None,
    group_list_type: int | None,
    act_type: int | None,
) -> None:
    if group_type != 0 or group_list is None or len(x) != 1:
        raise refuse(_NAME, "group_type", group_type, "0, with a group_list and one x")
    if group_list_type not in {None, 0, 1}:
        raise refuse(_NAME, "group_list_type", group_list_type, "0 (cumulative sums) or 1 (counts)")
    if act_type not in {None, 0}:
        raise refuse(_NAME, "act_type", act_type, "0, no activation")
    if len(weight) > MAX_TENSOR_LIST:
        expected = f"at most {MAX_TENSOR_LIST}, or one tensor that stacks them"
        raise refuse(_NAME, "number of weights", len(weight), expected)


def _refuse_dtypes(
    rows: torch.Tensor,
    weight: Sequence[torch.Tensor],
    scale: Sequence[torch.Tensor] | None,
    per_token_scale: Sequence[torch.Tensor] | None,
    output: torch.dtype | None,
) -> None:
    """Refuse what would give numbers, but wrong ones: bit patterns in int64, codes in fp8."""
    quantised = rows.dtype == torch.int8
    if not quantised and rows.dtype not in _FLOATS:
        raise refuse(_NAME, "dtype of x", rows.dtype, "int8, float16, bfloat16 or float32")
    if weight[0].dtype != rows.dtype:
        raise refuse(_NAME, "dtype of weight", weight[0].dtype, f"{rows.dtype}, as x")
    for name, tensors in (("scale", scale), ("per_token_scale", per_token_scale)):
        if tensors is not None and not quantised:
            raise refuse(_NAME, name, "given", f"None with {rows.dtype} x")
        for tensor in tensors or ():
            if tensor.dtype not in _FLOATS:
                raise refuse(_NAME, f"dtype of {name}", tensor.dtype, "float16, bfloat16 or float32")
    if quantised and scale is None and output != torch.int32:
        raise refuse(_NAME, "scale", None, "scales with int8 x, or output_dtype int32")
    if output == torch.int32 and not (quantised and scale is per_token_scale is None):
        raise refuse(_NAME, "output_dtype", output, "a float dtype, or int8 x without scales")


# The numbers of torch's ScalarType, which torch_npu's newer schemas take.
_DTYPES = {3: torch.int32, 5: torch.float16, 6: torch.float32, 15: torch.bfloat16}
_FLOATS = frozenset({torch.float16, torch.float32, torch.bfloat16})


def _has_grouped_mm(dtype: torch.dtype) -> bool:
    """Return whether this torch multiplies groups of a dtype on a CPU: it is tried, for releases differ."""
    rows, matrices = (
        torch.ones(2, _ALIGNMENT, dtype=dtype),
        torch.ones(1, _ALIGNMENT, _ALIGNMENT, dtype=dtype),
    )
    try:
        product = functional.grouped_mm(rows, matrices, offs=torch.tensor([2], dtype=torch.int32))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return bool((product == _ALIGNMENT).all())


_AT_ONCE = frozenset(filter(_has_grouped_mm, _FLOATS))


def _all_at_once(
    rows: torch.Tensor, weight: Sequence[torch.Tensor], ends: torch.Tensor
) -> torch.Tensor | None:
    """Multiply all groups in one call of torch's, half as long as a loop over few rows; None where it cannot."""
    if len(weight) != 1 or weight[0].dim() != 3:  # noqa: PLR2004 - [G, K, N]
        return None
    _, inner, outer = weight[0].shape
    aligned = all(size * rows.element_size() % _ALIGNMENT == 0 for size in (inner, outer))
    fits = rows.dtype == weight[0].dtype and rows.dtype in _AT_ONCE and rows.is_contiguous()
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
        return product if bias is None else product + bias.double()
    return rows @ weight if bias is None else rows @ weight + bias.to(rows.dtype)
