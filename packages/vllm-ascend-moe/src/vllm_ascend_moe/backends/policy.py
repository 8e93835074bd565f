# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The planner as vLLM's balancing policy, and the check at the start that it will find a plan; `one_plan` calls it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch

from expert_maps import LayoutError, Placement, PlacementError, plan
from expert_maps.policies import DEFAULT_POLICY, load_planner
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from vllm.distributed.eplb.policy import AbstractEplbPolicy

# A plan of 58 layers takes some milliseconds: more threads than these save little of it.
_MOST_THREADS = 4


def check_policy(
    name: str | None, placement: Placement, num_groups: int, num_nodes: int, max_moves: int | None = None
) -> None:
    """Try a plan, so that counts which the policy cannot plan are refused at the start and not at every rearrangement.

    Args:
        name: one of `expert_maps.POLICY_NAMES`; None for `expert_maps.plan`'s default.
        placement: the one that is served at the start.
        num_groups: the router's expert groups, as the model names them.
        num_nodes: servers, as vLLM counts them.
        max_moves: as for `make_policy`.

    Raises:
        EplbConfigError: the policy has no plan for these counts, or none from this placement.
        ExpertMapsError: the compiled planner, which ``balanced`` needs, is missing.
    """
    policy = name or DEFAULT_POLICY
    load = np.ones((placement.num_layers, placement.num_logical_experts))
    groups, nodes = usable_groups(
        policy, num_groups, num_nodes, placement.num_logical_experts, placement.ep_size
    )
    try:
        plan(
            load,
            num_physical_experts=placement.num_physical_experts,
            ep_size=placement.ep_size,
            num_groups=groups,
            num_nodes=nodes,
            policy=policy,
            current=placement if policy == "balanced" else None,
            max_moves=max_moves,
        )
    except LayoutError as error:
        msg = f"policy {policy!r} cannot plan for {num_groups} expert groups on {num_nodes} nodes: {error}"
        raise EplbConfigError(msg) from error


def router_groups(num_groups: int, num_experts: int) -> int:
    """Return the groups to plan for: vLLM counts one where the router has none, and 0 in some models."""
    return num_groups if num_groups > 0 and num_experts % num_groups == 0 else 1


def usable_groups(
    policy: str, num_groups: int, num_nodes: int, num_experts: int, ep_size: int
) -> tuple[int, int]:
    """Return the groups and nodes to plan for.

    They are the model's and the ranks', and nobody has chosen them: where the groups do not divide by the nodes,
    ``balanced`` plans without them. DeepSeek's policies decide that by themselves. Nodes by which the ranks do not divide
    are the caller's mistake, which the planner names.
    """
    groups = router_groups(num_groups, num_experts)
    is_unusable = policy == "balanced" and groups % num_nodes and ep_size % num_nodes == 0
    return (1, 1) if is_unusable else (groups, num_nodes)


def make_policy(name: str | None = None, max_moves: int | None = None) -> type[AbstractEplbPolicy]:
    """Return a policy of expert-maps behind vLLM's interface.

    Args:
        name: one of `expert_maps.POLICY_NAMES`; None for `expert_maps.plan`'s default.
        max_moves: slots of a layer that one rearrangement may change, with the policy ``balanced``; None for any number.

    Raises:
        ExpertMapsError: the compiled planner, which ``balanced`` needs, is missing.
    """
    from vllm.distributed.eplb.policy import AbstractEplbPolicy

    policy = name or DEFAULT_POLICY
    if policy == "balanced":
        load_planner()  # so that a missing one is known at the start, not at the first rearrangement

    class ExpertMapsPolicy(AbstractEplbPolicy):  # type: ignore[misc] # vLLM is not installed where types are checked
        """Plans every rearrangement."""

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
                    keeps its slot, and ``balanced`` plans from it.

            Returns:
                physical_to_logical, int64 [L, P], on the CPU.

            Raises:
                ExpertMapsError: no plan can be made.
            """
            old = None if old_global_expert_indices is None else old_global_expert_indices.cpu().numpy()
            cluster = (num_replicas, num_groups, num_nodes, num_ranks)
            rows = _planned_rows(policy, max_moves, weight.cpu().numpy(), cluster, old)
            return torch.from_numpy(rows.astype(np.int64))

    return ExpertMapsPolicy


def _planned_rows(
    policy: str,
    max_moves: int | None,
    load: NDArray[np.number],
    cluster: tuple[int, int, int, int],
    old: NDArray[np.integer] | None,
) -> NDArray[np.integer]:
    """Plan [L, E], with what vLLM says of the cluster: P, groups, nodes, R. Arguments and errors as of `make_policy`."""
    slots, num_groups, num_nodes, ep_size = cluster
    current = None
    if policy == "balanced" and old is not None:
        current = _as_placement(old, load.shape[1], slots, ep_size)
    groups, nodes = usable_groups(policy, num_groups, num_nodes, load.shape[1], ep_size)
    result = plan(
        load,
        num_physical_experts=slots,
        ep_size=ep_size,
        num_groups=groups,
        num_nodes=nodes,
        policy=policy,
        current=current,
        max_moves=None if current is None else max_moves,
        num_threads=planning_threads() if policy == "balanced" else 1,
    )
    rows = result.placement.physical_to_logical
    return keep_slots(rows, old, ep_size) if old is not None and current is None else rows


def planning_threads() -> int:
    """Return on how many threads to plan: one rank plans for all, while the cores of this process serve."""
    is_told = hasattr(os, "sched_getaffinity")  # Linux
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)) if is_told else os.cpu_count() or 1)


def _as_placement(
    old: NDArray[np.integer], num_experts: int, num_slots: int, ep_size: int
) -> Placement | None:
    """Return the present placement, or None where there is none to start from: other counts, or an invalid one."""
    if old.shape[1] != num_slots:
        return None
    try:
        # An expert may be twice on a rank, at the start or by another policy; the plan has it there once.
        return Placement(old, ep_size, num_logical_experts=num_experts, allow_duplicates=True)
    except PlacementError:
        return None


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
