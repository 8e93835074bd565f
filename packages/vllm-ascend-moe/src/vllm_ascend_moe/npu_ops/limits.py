# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What torch_npu documents as the limits of its ops, checked when a layer is made.

torch_npu's own shape functions are lax: they let pass what the device refuses at the first token. The
limits here are those of the documentation that its wheels carry (torch_npu 2.13).
"""

from __future__ import annotations

import torch

MAX_EXPERTS = 2048
MAX_EXPANDED_EXPERTS = 10240
MAX_UNPERMUTE_TOP_K = 512
MAX_TENSOR_LIST = 128
MAX_INNER_DIM = 65536
_GROUP_ALIGNMENT = 32
_MIN_EXPERTS_PER_GROUP = 3
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class LimitError(ValueError):
    """A layer's shape is past what an op of torch_npu takes; the message names the op and the quantity."""


def check_gating(num_experts: int, top_k: int, group_count: int, k_group: int) -> None:
    """Check a router's counts against `npu_moe_gating_top_k`.

    Args:
        num_experts: E.
        top_k: K.
        group_count: the router's expert groups.
        k_group: how many groups a token chooses from.

    Raises:
        LimitError: a limit is passed.
    """
    name = "npu_moe_gating_top_k"
    _require(name, "num_experts", num_experts, f"1 … {MAX_EXPERTS}", 1 <= num_experts <= MAX_EXPERTS)
    _require(name, "group_count", group_count, "at least 1", group_count >= 1)
    divides = num_experts % group_count == 0
    _require(name, "group_count", group_count, f"a divisor of num_experts ({num_experts})", divides)
    per_group = num_experts // group_count
    if group_count > 1:
        enough = per_group >= _MIN_EXPERTS_PER_GROUP
        _require(name, "experts per group", per_group, f"at least {_MIN_EXPERTS_PER_GROUP}", enough)
        aligned = -(-per_group // _GROUP_ALIGNMENT) * _GROUP_ALIGNMENT * group_count
        expected = f"at most {MAX_EXPERTS}"
        _require(
            name, "group_count x experts per group, aligned to 32,", aligned, expected, aligned <= MAX_EXPERTS
        )
    _require(name, "k_group", k_group, f"1 … {group_count}", 1 <= k_group <= group_count)
    most = k_group * per_group
    _require(name, "top_k", top_k, f"1 … {most} (k_group x experts per group)", 1 <= top_k <= most)


def check_experts(
    num_local_experts: int, top_k: int, hidden_size: int, intermediate_size: int, dtype: torch.dtype
) -> None:
    """Check a rank's experts against the ops that sort, multiply and add up.

    Args:
        num_local_experts: slots of the rank.
        top_k: K.
        hidden_size: H.
        intermediate_size: of one expert, after the gate.
        dtype: of the activations.

    Raises:
        LimitError: a limit is passed.
    """
    most = MAX_EXPANDED_EXPERTS - 1  # one more stands for "on another rank"
    fits = 1 <= num_local_experts <= most
    _require("npu_moe_init_routing_v2", "num_local_experts", num_local_experts, f"1 … {most}", fits)
    fits = 1 <= top_k <= MAX_UNPERMUTE_TOP_K
    _require("npu_moe_token_unpermute", "top_k", top_k, f"1 … {MAX_UNPERMUTE_TOP_K}", fits)
    for quantity, size in (("hidden_size", hidden_size), ("2 x intermediate_size", 2 * intermediate_size)):
        _require("npu_grouped_matmul", quantity, size, f"1 … {MAX_INNER_DIM - 1}", 1 <= size < MAX_INNER_DIM)
    _require("npu_grouped_matmul", "dtype", dtype, "float16, bfloat16 or float32", dtype in _FLOATS)


def check_quantised(dtype: torch.dtype) -> None:
    """Check the dtype that W8A8 products are written in.

    Raises:
        LimitError: it is not float16 or bfloat16.
    """
    fits = dtype in {torch.float16, torch.bfloat16}
    _require("npu_grouped_matmul", "dtype with int8 weights", dtype, "float16 or bfloat16", fits)


def _require(op_name: str, quantity: str, value: object, expected: str, holds: bool) -> None:  # noqa: FBT001 - private
    if not holds:
        msg = f"{op_name}: {quantity} is {value}; expected {expected}"
        raise LimitError(msg)
