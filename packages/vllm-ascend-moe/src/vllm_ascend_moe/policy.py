# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The planner as vLLM's balancing policy. Importing this module loads vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.distributed.eplb.policy import AbstractEplbPolicy

from expert_maps import ExpertMapsError, plan
from expert_maps.policies import DEFAULT_POLICY
from vllm_ascend_moe._log import logger

if TYPE_CHECKING:
    from numpy.typing import NDArray


def make_policy(name: str | None = None) -> type[AbstractEplbPolicy]:
    """Return a policy of expert-maps behind vLLM's interface.

    Args:
        name: one of `expert_maps.POLICY_NAMES`; None for `expert_maps.plan`'s default.
    """

    class ExpertMapsPolicy(AbstractEplbPolicy):  # type: ignore[misc] # vLLM is not installed where types are checked
        """Plans every rearrangement; the same load gives every rank the same placement."""

        @classmethod
        def rebalance_experts(
            cls,
            weight: torch.Tensor,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: torch.Tensor | None = None,
        ) -> torch.Tensor:
            """Plan.

            Args:
                weight: [L, E], the load of every logical expert.
                num_replicas: P.
                num_groups: the router's expert groups.
                num_nodes: servers.
                num_ranks: R.
                old_global_expert_indices: [L, P], the present placement; an expert that stays on its rank
                    keeps its slot. Returned where no plan can be made.

            Returns:
                physical_to_logical, int64 [L, P], on the CPU.
            """
            load = weight.cpu().numpy()
            try:
                result = plan(
                    load,
                    num_physical_experts=num_replicas,
                    ep_size=num_ranks,
                    # vLLM counts one group where the router has none, and 0 in some models.
                    num_groups=num_groups if num_groups > 0 and load.shape[1] % num_groups == 0 else 1,
                    num_nodes=num_nodes,
                    policy=name or DEFAULT_POLICY,
                )
            except ExpertMapsError:
                if old_global_expert_indices is None:
                    raise
                logger.exception("no plan could be made; the placement stays as it is")
                return old_global_expert_indices.cpu().long()
            rows = result.placement.physical_to_logical
            if old_global_expert_indices is not None:
                rows = keep_slots(rows, old_global_expert_indices.cpu().numpy(), num_ranks)
            return torch.from_numpy(rows.astype(np.int64))

    return ExpertMapsPolicy


def keep_slots(new: NDArray[np.int32], old: NDArray[np.integer], ep_size: int) -> NDArray[np.int32]:
    """Reorder each rank's slots so that an expert that stays on its rank keeps its slot.

    Args:
        new: the plan, [L, P].
        old: the present placement, [L, P].
        ep_size: R.

    Returns:
        [L, P]: the same experts on every rank.
    """
    kept = np.array(new, order="C")  # the rows below must be views
    slots = new.shape[1] // ep_size
    for row, before in zip(
        kept.reshape(-1, slots), np.asarray(old).reshape(-1, slots), strict=True
    ):  # one rank of one layer
        left = list(row)
        stays = np.zeros(slots, dtype=bool)
        for slot, expert in enumerate(before):
            if expert in left:
                left.remove(expert)
                stays[slot] = True
        row[stays] = before[stays]
        row[~stays] = left
    return kept
