# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One rank's share of an MoE layer, on torch_npu's ops: sort rows by expert, multiply, add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vllm_ascend_moe.npu_ops import limits, ops

if TYPE_CHECKING:
    from vllm_ascend_moe.npu_ops.packed import PackedExperts

_GATE_AND_UP = 2


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """The experts that one rank holds, in slot order.

    Attributes:
        w13: gate and up projections, [slots, H, 2·I]; float, or int8 for W8A8.
        w2: down projection, [slots, I, H], dtype as w13.
        w13_scale: with int8: one factor a column, [slots, 2·I].
        w2_scale: with int8: [slots, H].

    Raises:
        ValueError: shapes or dtypes do not fit together.
    """

    w13: torch.Tensor
    w2: torch.Tensor
    w13_scale: torch.Tensor | None = None
    w2_scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        slots, hidden, double = self.w13.shape
        wanted: dict[str, tuple[int, ...]] = {"w2": (slots, double // _GATE_AND_UP, hidden)}
        if self.is_quantised:
            wanted |= {"w13_scale": (slots, double), "w2_scale": (slots, hidden)}
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is None or tuple(tensor.shape) != shape:
                found = None if tensor is None else list(tensor.shape)
                msg = f"{name} has shape {found}; expected {list(shape)} beside w13 {list(self.w13.shape)}"
                raise ValueError(msg)
        if double % _GATE_AND_UP or self.w2.dtype != self.w13.dtype:
            msg = f"w13 is {self.w13.dtype} {list(self.w13.shape)}, w2 {self.w2.dtype}; expected one dtype and an even last axis"
            raise ValueError(msg)
        if not self.is_quantised and (self.w13_scale is not None or self.w2_scale is not None):
            msg = f"scales are given, but the weights are {self.w13.dtype}; expected int8"
            raise ValueError(msg)

    @property
    def num_slots(self) -> int:
        """How many experts the rank holds."""
        return int(self.w13.shape[0])

    @property
    def is_quantised(self) -> bool:
        """Whether the weights are int8."""
        return self.w13.dtype == torch.int8

    def check_limits(self, top_k: int, dtype: torch.dtype) -> None:
        """Check against the ops' documented limits, once, before there are tokens.

        Raises:
            LimitError: a limit is passed.
        """
        _, hidden, double = self.w13.shape
        limits.check_experts(self.num_slots, top_k, hidden, double // _GATE_AND_UP, dtype)
        if self.is_quantised:
            limits.check_quantised(dtype)


def local_slots(
    topk_ids: torch.Tensor,
    num_slots: int,
    *,
    expert_map: torch.Tensor | None = None,
    first_physical: int = 0,
) -> torch.Tensor:
    """Return the local slot of every entry, or num_slots where the expert is on another rank.

    Args:
        topk_ids: int32 or int64 [T, K]: logical ids with an expert_map, physical ones without; −1 inactive.
        num_slots: slots of this rank.
        expert_map: int32 [E], logical → local slot, −1 where absent.
        first_physical: the physical id of this rank's slot 0; only without an expert_map.

    Returns:
        int32 [T, K].
    """
    if expert_map is None:
        slots = topk_ids - first_physical
    else:
        slots = expert_map.index_select(0, topk_ids.clamp(min=0).reshape(-1)).view_as(topk_ids)
    elsewhere = (slots < 0) | (slots >= num_slots) | (topk_ids < 0)
    return torch.where(elsewhere, num_slots, slots).to(torch.int32)


def apply_experts(
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    weights: ExpertWeights,
    *,
    expert_map: torch.Tensor | None = None,
    first_physical: int = 0,
    packed: PackedExperts | None = None,
) -> torch.Tensor:
    """Return this rank's contribution to the layer; the sum over ranks is the layer's output.

    Args:
        hidden_states: [T, H], float16, bfloat16 or float32.
        topk_weights: [T, K].
        topk_ids: int32 or int64 [T, K]; see `local_slots`.
        weights: this rank's experts.
        expert_map: int32 [E], if ids are logical.
        first_physical: this rank's first physical id, if ids are physical.
        packed: the same experts as `packed.pack_experts` makes them once: vLLM's kernel for a CPU then serves the
            numbers of rows of which it is the quicker one.

    Returns:
        [T, H], dtype of hidden_states; zeros for tokens without an expert on this rank.
    """
    num_tokens, top_k = topk_ids.shape
    num_slots = weights.num_slots
    if num_tokens == 0:
        return torch.zeros_like(hidden_states)
    if packed is not None and packed.is_quicker(hidden_states, topk_ids.numel()):
        return packed.apply(
            hidden_states, topk_weights, topk_ids, expert_map=expert_map, first_physical=first_physical
        )
    slots = local_slots(topk_ids, num_slots, expert_map=expert_map, first_physical=first_physical)
    # 1. Sort rows by slot. The slot past the last stands for other ranks: it is a valid id, as torch_npu
    #    wants, and outside the active range.
    rows, row_idx, counts, row_scale = ops.npu_moe_init_routing_v2(
        hidden_states,
        slots,
        scale=None,
        offset=None,
        active_num=num_tokens * top_k,
        expert_capacity=-1,
        expert_num=num_slots + 1,
        drop_pad_mode=0,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        quant_mode=1 if weights.is_quantised else -1,
        active_expert_range=[0, num_slots],
        row_idx_type=0,
    )
    # 2. Multiply, gate, multiply.
    activated = ops.npu_swiglu(
        _multiply(rows, row_scale, counts, weights.w13, weights.w13_scale, hidden_states.dtype), -1
    )
    if weights.is_quantised:
        activated, row_scale = ops.npu_dynamic_quant(activated, smooth_scales=None)
    rows = _multiply(activated, row_scale, counts, weights.w2, weights.w2_scale, hidden_states.dtype)
    return _summed(rows, row_idx.view(num_tokens, top_k), topk_weights.to(hidden_states.dtype))


def _summed(rows: torch.Tensor, entry_row: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """Add up rows [N, H] by token, weighted [T, K]; entry_row [T, K] is −1 for an expert on another rank."""
    # 3. Add up by token. Rows past the active ones are undefined, NaN perhaps, and 0 x NaN is NaN: so an
    #    entry on another rank reads, with weight 0, a row that its token has here; a token that has none
    #    is set to zero afterwards.
    local = entry_row >= 0
    own_row = entry_row.amax(1, keepdim=True)
    entry_row = torch.where(local, entry_row, own_row.clamp(min=0))
    probs = torch.where(local, topk_weights, 0)
    summed = ops.npu_moe_token_unpermute(rows, entry_row.reshape(-1), probs, False)  # noqa: FBT003 - torch_npu's signature
    return torch.where(own_row >= 0, summed, 0)


def _multiply(
    rows: torch.Tensor,
    row_scale: torch.Tensor,
    counts: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Multiply each slot's rows by its matrix: [T·K, N] of ``dtype``."""
    # A list of counts must be longer than one; of one group the count is the cumulative sum too.
    list_type = 1 if len(weight) > 1 else 0
    if weight_scale is None:
        return ops.npu_grouped_matmul(
            [rows], [weight], group_list=counts, split_item=2, group_type=0, group_list_type=list_type
        )[0]
    # torch_npu takes scales in bfloat16 for bfloat16 output and in float32 for float16.
    scale = weight_scale.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    return ops.npu_grouped_matmul(
        [rows],
        [weight],
        scale=[scale],
        per_token_scale=[row_scale],
        group_list=counts,
        split_item=2,
        group_type=0,
        group_list_type=list_type,
        output_dtype=dtype,
    )[0]
