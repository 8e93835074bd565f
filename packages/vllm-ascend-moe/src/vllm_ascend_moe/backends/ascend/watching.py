# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is counted for the metrics beside vllm-ascend's runner V1, from what its slots hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_maps import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_ascend_moe.backends.ascend.model import Rows
    from vllm_ascend_moe.core.meter import Meter


def slot_bytes(updator: Any) -> float:
    """Return the bytes of what vllm-ascend moves for one slot, of its first layer."""
    slot = next(iter(updator.adaptor.expert_param_per_layer.values()))[0]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in slot))


def placed(meter: Meter, rows: Sequence[Rows], num_experts: int) -> Placement | None:
    """Return what slots hold; None where nothing is counted, or without expert parallelism.

    Args:
        meter: the engine's.
        rows: the expert in every slot of every rank, of every layer.
        num_experts: E.
    """
    if not meter.is_on or not rows or not all(map(all, rows)):
        return None
    return Placement.from_rank_lists(rows, num_logical_experts=num_experts)


def layer_moved(
    meter: Meter, before: Rows, rows: Sequence[Rows], index: int, num_experts: int, *, is_last: bool
) -> None:
    """Count a layer's move.

    Args:
        meter: the engine's.
        before: what the layer's slots held.
        rows: as for `placed`, now.
        index: of the layer.
        num_experts: E.
        is_last: whether it ends the rearrangement.
    """
    if not meter.is_on:
        return
    meter.begin_move()
    was, now = (
        Placement.from_rank_lists([held], num_logical_experts=num_experts) for held in (before, rows[index])
    )
    meter.moved(was, now)
    if is_last:
        meter.end_move(placed(meter, rows, num_experts))


__all__ = ["layer_moved", "placed", "slot_bytes"]
