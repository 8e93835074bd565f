# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Rows sent to their experts' ranks, and back: MC2's dispatch and combine."""

from __future__ import annotations

import torch

from torch_npu import _hccl
from torch_npu._registry import NPU, given
from torch_npu.ops.routing import check_ids
from vllm_ascend_moe.npu_ops import ops as twins

_IGNORED = (
    "comm_alg",
    "global_bs",
    "group_tp",
    "tp_world_size",
    "tp_rank_id",
    "expert_shard_type",
    "shared_expert_num",
)
_DYNAMIC = 2


@given(NPU, "npu_moe_distribute_dispatch_v2", ignored=(*_IGNORED, "expert_scales"))
def npu_moe_distribute_dispatch_v2(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    x_active_mask: torch.Tensor | None = None,
    quant_mode: int = 0,
    expert_token_nums_type: int = 1,
) -> tuple[torch.Tensor, ...]:
    """Send each token's row to the ranks of its experts.

    Args:
        x: [T, H] of this rank; T may differ from rank to rank.
        expert_ids: physical ids, int32 [T, K].
        group_ep: the communicator.
        ep_world_size: R.
        ep_rank_id: this rank.
        moe_expert_num: P, a multiple of R.
        x_active_mask: bool [T] or [T, K]: what is sent; None for all.
        quant_mode: 0, or 2 for int8 with a scale for each row.
        expert_token_nums_type: cumulative sums (0) or counts (1).

    Returns:
        rows: those of this rank's experts, by expert and rank of origin; as many as there are.
        scales: float32, of the rows; NaN without quantisation.
        origins: int32 [rows, 3], rank, token and k: what combine needs.
        numbers: int64 [P / R], rows of each expert.
        received: int32 [P], cumulative sums of rows by expert and rank of origin.
        tp_received: int32 [1], 0.
        weights: float32 [1], NaN.

    Raises:
        NotImplementedError: another quantisation, or P is no multiple of R.
        IndexError: an id is out of range.
    """
    if quant_mode not in {0, _DYNAMIC} or moe_expert_num % ep_world_size:
        msg = (
            f"npu_moe_distribute_dispatch_v2: quant_mode is {quant_mode}, {moe_expert_num} experts on "
            f"{ep_world_size} ranks; expected 0 or 2, and equal shares"
        )
        raise NotImplementedError(msg)
    check_ids("npu_moe_distribute_dispatch_v2", expert_ids, moe_expert_num)
    local = moe_expert_num // ep_world_size
    ids = expert_ids.long()
    if x_active_mask is not None:
        mask = x_active_mask if x_active_mask.dim() > 1 else x_active_mask[:, None]
        ids = torch.where(mask, ids, -1)
    rows, scale = (x, x.new_full((len(x),), torch.nan, dtype=torch.float32))
    if quant_mode == _DYNAMIC:
        rows, scale = twins.npu_dynamic_quant.twin(x)
    all_rows, all_scales, all_ids = (_hccl.gather_rows(group_ep, part) for part in (rows, scale, ids))
    # In the order of experts, and of ranks within one.
    origins = [
        torch.nn.functional.pad((all_ids[rank] == expert).nonzero(), (1, 0), value=rank)  # [n, 3]
        for expert in range(ep_rank_id * local, (ep_rank_id + 1) * local)
        for rank in range(ep_world_size)
    ]
    received = torch.tensor([len(part) for part in origins])
    numbers = received.view(local, ep_world_size).sum(1)
    where = torch.cat(origins)
    first = torch.tensor([0, *(len(part) for part in all_rows)]).cumsum(0)[:-1]
    source = first[where[:, 0]] + where[:, 1]
    return (
        torch.cat(all_rows)[source],
        torch.cat(all_scales)[source],
        where.to(torch.int32),
        numbers.cumsum(0) if expert_token_nums_type == 0 else numbers,
        received.cumsum(0).to(torch.int32),
        torch.zeros(1, dtype=torch.int32),
        torch.full((1,), torch.nan),
    )


@given(
    NPU,
    "npu_moe_distribute_combine_v2",
    ignored=(
        *_IGNORED,
        "moe_expert_num",
        "ep_world_size",
        "ep_send_counts",
        "tp_send_counts",
        "expand_scales",
    ),
)
def npu_moe_distribute_combine_v2(
    expand_x: torch.Tensor,
    expert_ids: torch.Tensor,
    assist_info_for_combine: torch.Tensor,
    expert_scales: torch.Tensor,
    group_ep: str,
    ep_rank_id: int,
    *,
    x_active_mask: torch.Tensor | None = None,
    shared_expert_x: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bring rows back and add them up by weight, in float32 and rounded once.

    Args:
        expand_x: [rows, H], what became of dispatch's rows.
        expert_ids: int32 [T, K] of this rank.
        assist_info_for_combine: dispatch's third output.
        expert_scales: float32 [T, K], weights.
        group_ep: the communicator.
        ep_rank_id: this rank.
        x_active_mask: bool [T] or [T, K]: what was sent.
        shared_expert_x: [T, H], added.

    Returns:
        [T, H]; rows of tokens of which nothing was sent are undefined.
    """
    tokens, width = expert_ids.shape[0], expand_x.shape[1]
    out = torch.zeros(tokens, width, dtype=torch.float32)
    all_rows = _hccl.gather_rows(group_ep, expand_x)
    all_origins = _hccl.gather_rows(group_ep, assist_info_for_combine)
    for rows, origins in zip(all_rows, all_origins, strict=True):
        mine = origins[:, 0] == ep_rank_id
        token, k = origins[mine, 1].long(), origins[mine, 2].long()
        out.index_add_(0, token, rows[mine].float() * expert_scales[token, k].float()[:, None])
    if shared_expert_x is not None:
        out += shared_expert_x.float()
    if x_active_mask is not None:
        sent = x_active_mask.any(1) if x_active_mask.dim() > 1 else x_active_mask
        out[~sent.bool()] = torch.nan
    return out.to(expand_x.dtype)
