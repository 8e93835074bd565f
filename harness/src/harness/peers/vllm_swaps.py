# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Ours in place of vLLM's. Each function takes vLLM's own and the variant, and returns ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import Placement, generate_placement
from harness.peers.calls import hit
from vllm_ascend_moe.backends.policy import keep_slots, make_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def policy(_theirs: object, variant: str) -> object:
    """Return a policy of expert-maps under the names of vLLM's class."""
    made = make_policy(variant)

    class Ours:
        """What the tests call of vLLM's class."""

        @staticmethod
        def rebalance_experts(*args: Any) -> torch.Tensor:  # noqa: ANN401 - as vLLM's
            hit()
            return made.rebalance_experts(*args)

        @staticmethod
        def preserve_intragpu_slots(
            planned: NDArray[np.int64], num_ranks: int, old: NDArray[np.int64]
        ) -> NDArray[np.int32]:
            hit()
            return keep_slots(planned.astype(np.int32), old, num_ranks)

    return Ours


def logical_maps(
    _theirs: object, _variant: str
) -> Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]:
    """Return `compute_logical_maps` as a placement gives them, in the dtype that vLLM has."""

    def compute_logical_maps(rows: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        hit()
        table = rows.numpy().reshape(-1, rows.shape[-1])
        # Of the rank nothing is asked here: all slots are one rank's.
        placement = Placement(table, 1, num_logical_experts=num_experts, allow_duplicates=True)
        slots = torch.from_numpy(placement.logical_to_physical.astype(np.int64))
        counts = torch.from_numpy(placement.replica_count.astype(np.int64))
        return (slots, counts) if rows.dim() > 1 else (slots[0], counts[0])

    return compute_logical_maps


def expert_map(_theirs: object, _variant: str) -> Callable[..., tuple[int, torch.Tensor | None, None]]:
    """Return `determine_expert_map` from a layout by name."""

    def determine_expert_map(
        ep_size: int,
        ep_rank: int,
        global_num_experts: int,
        expert_placement_strategy: Any = "linear",  # noqa: ANN401 - vLLM's Literal
    ) -> tuple[int, torch.Tensor | None, None]:
        hit()
        if ep_size == 1:
            return global_num_experts, None, None
        placement = generate_placement(
            expert_placement_strategy, num_experts=global_num_experts, ep_size=ep_size
        )
        table = torch.from_numpy(placement.expert_map(0, ep_rank).copy())
        return int(placement.slots_per_rank[ep_rank]), table, None

    return determine_expert_map
