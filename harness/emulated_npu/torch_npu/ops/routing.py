# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From a router's logits to experts' rows and back: the plugin's twins, and what has none there."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from torch_npu._registry import CUSTOM, NPU, given
from vllm_ascend_moe.npu_ops import ops as twins

# Number of torch's ScalarType, which schemas take for a dtype.
_INT8 = 1

given(NPU, "npu_moe_gating_top_k")(twins.npu_moe_gating_top_k.twin)
given(NPU, "npu_moe_token_unpermute", ignored=("restore_shape",))(twins.npu_moe_token_unpermute.twin)
given(NPU, "npu_swiglu")(twins.npu_swiglu.twin)


@given(CUSTOM, "moe_gating_top_k")
def moe_gating_top_k(  # noqa: PLR0917 - vllm-ascend's signature
    x: torch.Tensor,
    k: int,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
    bias_opt: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what npu_moe_gating_top_k does."""
    return twins.npu_moe_gating_top_k.twin(
        x,
        k,
        bias=bias_opt,
        k_group=k_group,
        group_count=group_count,
        group_select_mode=group_select_mode,
        renorm=renorm,
        norm_type=norm_type,
        out_flag=out_flag,
        routed_scaling_factor=routed_scaling_factor,
        eps=eps,
    )


@functools.wraps(twins.npu_moe_init_routing_v2.twin)
def npu_moe_init_routing(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    **options: Any,  # noqa: ANN401 - the twin's
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what the twin does; ids that no expert has are refused, also −1, which the twin takes.

    ``x_dtype`` may say that ``x`` is int8, which it is: it is for those whose elements torch has no type for.

    Raises:
        IndexError: an id is out of range.
    """
    x_dtype = options.pop("x_dtype", None)
    if x_dtype is not None and (x_dtype, x.dtype) != (_INT8, torch.int8):
        msg = f"npu_moe_init_routing: x_dtype is {x_dtype} with x of {x.dtype}; expected {_INT8} with int8, or None"
        raise NotImplementedError(msg)
    check_ids("npu_moe_init_routing", expert_idx, options.get("expert_num", -1))
    return twins.npu_moe_init_routing_v2.twin(x, expert_idx, **options)


# The twin's signature, and what older versions of the op do not have.
_twins = inspect.signature(npu_moe_init_routing)
npu_moe_init_routing.__signature__ = _twins.replace(  # type: ignore[attr-defined]
    parameters=[
        *_twins.parameters.values(),
        inspect.Parameter("x_dtype", inspect.Parameter.KEYWORD_ONLY, default=None),
    ]
)
given(NPU, "npu_moe_init_routing_v2")(npu_moe_init_routing)
given(CUSTOM, "npu_moe_init_routing_custom")(npu_moe_init_routing)


def check_ids(name: str, ids: torch.Tensor, number: int) -> None:
    """Refuse ids of experts that are not there.

    Raises:
        IndexError: an id is below 0 or not below `number`.
    """
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= number):
        msg = f"{name}: expert ids {int(ids.min())} … {int(ids.max())}; expected 0 … {number - 1}"
        raise IndexError(msg)


@given(NPU, "npu_moe_token_permute")
def npu_moe_token_permute(
    tokens: torch.Tensor, indices: torch.Tensor, num_out_tokens: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy each token's row once for each of its experts, in the order of the experts.

    Args:
        tokens: [T, H].
        indices: experts, [T, K] or [T].
        num_out_tokens: how many rows are wanted, from the first; None or 0 for all.

    Returns:
        rows [T·K, H], and for each entry t·K + k the row, int32 [T·K].
    """
    top_k = 1 if indices.dim() == 1 else indices.shape[1]
    order = torch.argsort(indices.reshape(-1), stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel())
    return tokens[order[: num_out_tokens or None] // top_k], place.to(torch.int32)
