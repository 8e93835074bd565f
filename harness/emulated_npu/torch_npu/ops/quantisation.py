# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""int8 with scales (W8A8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_npu._registry import CUSTOM, NPU, given
from vllm_ascend_moe.npu_ops import ops as twins

if TYPE_CHECKING:
    from collections.abc import Sequence

given(NPU, "npu_dynamic_quant")(twins.npu_dynamic_quant.twin)

# Numbers of torch's ScalarTypes, which schemas take for dtypes.
_DTYPES = {5: torch.float16, 6: torch.float32, 15: torch.bfloat16}
_DYNAMIC = 1
_UNDEFINED = torch.iinfo(torch.int8).min


@given(NPU, "npu_quant_matmul")
def npu_quant_matmul(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    *,
    pertoken_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    output_dtype: int | None = None,
) -> torch.Tensor:
    """Multiply int8 by int8 exactly, then scale columns and rows.

    Args:
        x1: int8 [..., M, K].
        x2: int8 [K, N].
        scale: float [N] or [1]; as int64, bit patterns, it is refused.
        pertoken_scale: float32 [M]; None for 1.
        bias: int32 [N], added before the scales; a float one is added after them.
        output_dtype: number of a float dtype.

    Returns:
        [..., M, N].

    Raises:
        NotImplementedError: other dtypes.
    """
    dtype = _DTYPES.get(output_dtype) if isinstance(output_dtype, int) else output_dtype
    if x1.dtype != torch.int8 or x2.dtype != torch.int8 or not scale.is_floating_point() or dtype is None:
        msg = (
            f"npu_quant_matmul: {x1.dtype} by {x2.dtype}, scale {scale.dtype}, output_dtype {output_dtype}; expected "
            f"int8, a float scale and one of {_DTYPES}"
        )
        raise NotImplementedError(msg)
    product = x1.double() @ x2.double()
    if bias is not None and not bias.is_floating_point():
        product = product + bias.double()
    scaled = product.float() * scale.float()
    if pertoken_scale is not None:
        scaled = scaled * pertoken_scale.float().unsqueeze(-1)
    if bias is not None and bias.is_floating_point():
        scaled = scaled + bias.float()
    return scaled.to(dtype)


@given(NPU, "npu_quantize")
def npu_quantize(
    self: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    dtype: int,
    axis: int = 1,
    div_mode: bool = True,
) -> torch.Tensor:
    """Return round(x / scale + zero point) in int8, to the nearest even; without div_mode x · scale.

    Raises:
        NotImplementedError: another dtype, or scales along another axis than the last.
    """
    if dtype not in {1, torch.int8} or (scales.numel() > 1 and axis not in {-1, self.dim() - 1}):
        msg = f"npu_quantize: dtype is {dtype}, axis {axis} of {self.dim()}; expected int8 and the last axis"
        raise NotImplementedError(msg)
    values = self.float() / scales.float() if div_mode else self.float() * scales.float()
    if zero_points is not None:
        values = values + zero_points.float()
    return values.round().clamp(-128, 127).to(torch.int8)


@given(NPU, "npu_dequant_swiglu_quant")
def npu_dequant_swiglu_quant(
    x: torch.Tensor,
    *,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale int32 products, gate them, and quantise each row.

    Args:
        x: int32 [M, 2·I].
        weight_scale: float32 [G, 2·I], a row for each group.
        activation_scale: float32 [M] or [M, 1].
        group_index: int64 [G], rows of each group; None for one group of all.
        activate_left: whether the activation is of the first half; else of the second.
        quant_mode: 1, a scale for each row.

    Returns:
        int8 [M, I] and float32 [M]; rows past the last group are undefined (here −128 and NaN).

    Raises:
        NotImplementedError: another quantisation, or x is not int32.
    """
    if quant_mode != _DYNAMIC or x.dtype != torch.int32 or weight_scale is None or activation_scale is None:
        msg = f"npu_dequant_swiglu_quant: {x.dtype}, quant_mode {quant_mode}; expected int32 with both scales, and 1"
        raise NotImplementedError(msg)
    counts = torch.tensor([len(x)]) if group_index is None else group_index
    last = int(counts.sum())
    of_row = weight_scale.float().view(len(counts), -1).repeat_interleave(counts.long(), 0)
    products = x[:last].float() * of_row * activation_scale.float().reshape(-1, 1)[:last]
    first, second = products.chunk(2, -1)
    gated = (
        torch.nn.functional.silu(first) * second
        if activate_left
        else first * torch.nn.functional.silu(second)
    )
    return _quantise_rows(gated, len(x))


given(CUSTOM, "npu_dequant_swiglu_quant", ignored=("clamp_limit", "glu_alpha", "glu_bias"))(
    npu_dequant_swiglu_quant
)


@given(CUSTOM, "grouped_matmul_swiglu_quant", "grouped_matmul_swiglu_quant_weight_nz")
def grouped_matmul_swiglu_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
    group_list: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Multiply each group's rows, scale, gate and quantise them.

    Args:
        x: int8 [M, K].
        weight: int8 [G, K, 2·I].
        weight_scale: float [G, 2·I].
        x_scale: float32 [M].
        group_list: int64 [G], cumulative sums of rows.

    Returns:
        int8 [M, I], float32 [M], and nothing, float32 [0]; rows past the last group are undefined (here −128
        and NaN).
    """
    return grouped_matmul_swiglu_quant_tensor_list(
        x, list(weight.unbind(0)), list(weight_scale.unbind(0)), x_scale, group_list
    )


@given(CUSTOM, "grouped_matmul_swiglu_quant_weight_nz_tensor_list")
def grouped_matmul_swiglu_quant_tensor_list(
    x: torch.Tensor,
    weight: Sequence[torch.Tensor],
    weight_scale: Sequence[torch.Tensor],
    x_scale: torch.Tensor,
    group_list: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do the same with a tensor for each group: weight int8 [K, 2·I], weight_scale [2·I]; or one stack of them."""
    if len(weight) == 1 and weight[0].dim() == 3:  # noqa: PLR2004 - [G, K, 2·I]
        weight, weight_scale = list(weight[0].unbind(0)), list(weight_scale[0].unbind(0))
    (products,) = twins.npu_grouped_matmul.twin(
        [x],
        list(weight),
        scale=list(weight_scale),
        per_token_scale=[x_scale],
        group_list=group_list,
        split_item=2,
        group_type=0,
        group_list_type=0,
        output_dtype=torch.float32,
    )
    quantised, scale = _quantise_rows(twins.npu_swiglu.twin(products[: int(group_list[-1])]), len(x))
    return quantised, scale, torch.empty(0)


@given(NPU, "npu_grouped_matmul_swiglu_quant")
def npu_grouped_matmul_swiglu_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    group_list: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what vllm-ascend's own op does, with its arguments in another order."""
    return grouped_matmul_swiglu_quant(x, weight, weight_scale, x_scale, group_list)


def _quantise_rows(values: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise, and add undefined rows up to a number."""
    quantised, scale = twins.npu_dynamic_quant.twin(values)
    missing = rows - len(values)
    return (
        torch.cat((quantised, quantised.new_full((missing, values.shape[1]), _UNDEFINED))),
        torch.cat((scale, scale.new_full((missing,), torch.nan))),
    )
