# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Ours in place of vllm-ascend's. Each function takes theirs and the variant, and returns ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import Placement, generate_placement, plan
from expert_maps.routing import rank_offset_table
from harness.peers.calls import hit
from vllm_ascend_moe.backends.ascend.answers import around_init_eplb_config
from vllm_ascend_moe.npu_ops.ops import map_to_physical as our_map_to_physical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# Rows of vllm-ascend's table.
_ROWS = 1024


def init_eplb_config(theirs: Callable[..., Any], _variant: str) -> Callable[..., Any]:
    """Return what the plugin puts around vllm-ascend's function."""

    def init(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vllm-ascend's
        hit()
        return around_init_eplb_config(theirs, *args, **kwargs)

    return init


def log2phy(_theirs: object, _variant: str) -> Callable[..., torch.Tensor]:
    """Return `generate_log2phy_map` from the placement that the expert maps are of."""

    def generate_log2phy_map(
        global_expert_map: Sequence[torch.Tensor] | torch.Tensor, ep_rank: int, tp_size: int | None = None
    ) -> torch.Tensor:
        hit()
        tables = [of_rank.numpy() for of_rank in global_expert_map]
        # Those that a rank does not hold have −1 and sort first: what is left are its experts in the order of slots.
        held = [table.argsort(kind="stable")[int((table < 0).sum()) :].tolist() for table in tables]
        placement = Placement.from_rank_lists([held], num_logical_experts=len(tables[0]))
        return torch.from_numpy(placement.log2phy(0, ep_rank, tp_size=tp_size or 1).copy())

    return generate_log2phy_map


def append(_theirs: object, _variant: str) -> Callable[..., torch.Tensor]:
    """Return `generate_global_placement` as the layout of that name."""

    def generate_global_placement(
        num_experts: int, ep_size: int, num_redundant_experts: int, num_shared_experts: int
    ) -> torch.Tensor:
        hit()
        assert not num_shared_experts
        return torch.from_numpy(
            _layout("append", num_experts, ep_size, num_redundant_experts).reshape(ep_size, -1).copy()
        )

    return generate_global_placement


def ring(_theirs: object, _variant: str) -> Callable[..., list[int]]:
    """Return `_build_distributed_initial_expert_map` as the layout ``ring``."""

    def build(num_experts: int, num_redundant_experts: int, ep_size: int) -> list[int]:
        hit()
        row: list[int] = _layout("ring", num_experts, ep_size, num_redundant_experts).tolist()
        return row

    return build


def _layout(name: Any, num_experts: int, ep_size: int, num_redundant_experts: int) -> NDArray[np.int32]:  # noqa: ANN401 - a Literal
    placement = generate_placement(
        name, num_experts=num_experts, ep_size=ep_size, num_redundant_experts=num_redundant_experts
    )
    return placement.physical_to_logical[0]


def routing_table(_theirs: object, _variant: str) -> Callable[..., torch.Tensor]:
    """Return `build_expert_replica_routing_table` as our table of turns."""

    def build(slots: torch.Tensor, count: torch.Tensor, *, ep_rank: int) -> torch.Tensor:
        hit()
        table = rank_offset_table(
            slots.numpy().astype(np.int32), count.numpy().astype(np.int32), ep_rank, _ROWS
        )
        return torch.from_numpy(table)

    return build


def map_to_physical(_theirs: object, _variant: str) -> Callable[..., torch.Tensor]:
    """Return `map_to_physical` of the plugin's ops."""

    def mapped(topk_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        hit()
        return our_map_to_physical(topk_ids, table)

    return mapped


def policy_factory(_theirs: object, _variant: str) -> object:
    """Return a factory whose policies, whatever their number, are the planner."""

    class Factory:
        """vllm-ascend's name for what makes policies."""

        @staticmethod
        def generate_policy(_number: int) -> _Planner:
            return _Planner()

    return Factory


class _Planner:
    """The planner under the interface of vllm-ascend's policies."""

    @staticmethod
    def rebalance_experts(
        current: torch.Tensor, workload: torch.Tensor
    ) -> tuple[int, NDArray[np.int64], NDArray[np.int32]]:
        """Plan.

        Args:
            current: [L, R, slots], the expert in each slot.
            workload: [L, R, slots] or [steps, L, R, slots], tokens of each slot.

        Returns:
            Whether something changes, the layers by how much they gain, and the placement [L, R, slots].
        """
        hit()
        table = np.asarray(current)
        num_layers, ep_size, slots = table.shape
        rows = table.reshape(num_layers, -1)
        num_experts = int(rows.max()) + 1
        counts = np.asarray(workload).reshape(-1, num_layers, ep_size * slots)
        load = np.zeros((len(counts), num_layers, num_experts))
        for step, of_step in zip(load, counts, strict=True):
            np.add.at(step, (np.arange(num_layers)[:, None], rows), of_step)
        # vllm-ascend's own start may have an expert twice on a rank.
        now = Placement(rows, ep_size, num_logical_experts=num_experts, allow_duplicates=True)
        result = plan(load, num_physical_experts=rows.shape[1], ep_size=ep_size, current=now)
        assert result.moves is not None
        changed = result.moves.changed.sum(axis=1)
        planned = result.placement.physical_to_logical.reshape(table.shape)
        return int(changed.any()), np.argsort(-changed, kind="stable"), planned
