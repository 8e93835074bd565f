# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`npu_dynamic_quant`: int8 with a scale for each row."""

from __future__ import annotations

import torch

from vllm_ascend_moe.npu_ops.ops._op import op, refuse

_NAME = "npu_dynamic_quant"
_INT8_MAX = 127
_INT8 = 1  # int8's number among torch's ScalarTypes


@op(
    "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, "
    'int? dst_type=None, str quant_mode="pertoken", float dst_type_max=0.0) -> (Tensor, Tensor)'
)
def npu_dynamic_quant(
    input: torch.Tensor,  # noqa: A002 - torch_npu's name
    *,
    smooth_scales: torch.Tensor | None = None,
    dst_type: torch.dtype | int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise symmetrically, row by row.

    Args:
        input: float16, bfloat16 or float32 [..., H].
        smooth_scales: [H], multiplies every row first.
        dst_type: None, or int8, also by its number among torch's ScalarTypes.

    Returns:
        quantised: int8 [..., H], round(input / scale) to the nearest even; zeros where a row is zero.
        scale: float32 [...], the row's largest magnitude / 127.

    Raises:
        ValueError: another dst_type.
    """
    if dst_type not in {None, torch.int8, _INT8}:
        raise refuse(_NAME, "dst_type", dst_type, f"None, torch.int8 or its number {_INT8}")
    values = input.float()
    if smooth_scales is not None:
        values = values * smooth_scales.float()
    scale = values.abs().amax(-1) / _INT8_MAX if values.shape[-1] else values.new_zeros(values.shape[:-1])
    divisor = torch.where(scale == 0, 1.0, scale).unsqueeze(-1)
    quantised = (values / divisor).round_().clamp_(-_INT8_MAX, _INT8_MAX).to(torch.int8)
    return quantised, scale
