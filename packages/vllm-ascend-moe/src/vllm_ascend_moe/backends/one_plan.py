# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One plan for all ranks: which rank plans a rearrangement, and that all keep what there is where planning fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import LayoutError, Placement, rank_load
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.core.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import ProcessGroup

    from vllm_ascend_moe.core.gain import MoveRule


class OnePlan:
    """In place of a policy of vLLM's: one rank plans and all take its plan, or all keep the present placement.

    vLLM lets every rank plan for itself. Where one fails, or finds something else, ranks would move weights to different
    placements.

    Attributes:
        moves: whether the last plan moves anything.
        rows: the last plan, int64 [L, P]; None before there was one.
    """

    def __init__(
        self, planner: Any, rule: MoveRule, group: ProcessGroup | None, meter: Meter | None = None
    ) -> None:
        """Plan by another policy.

        Args:
            planner: a policy of vLLM's.
            rule: which layers of its plans are moved.
            group: of processes on the CPU, used by nothing else at the same time; None for a single rank.
            meter: counts plans, and why nothing was moved; None for none.
        """
        self.moves = False
        self.rows: torch.Tensor | None = None
        self._planner = planner
        self._rule = rule
        self._group = group
        self._has_said = False
        self._meter = meter or Meter()
        # Why the last plan that was made here moves nothing.
        self._skipped: str | None = None

    def rebalance_experts(
        self,
        weight: torch.Tensor,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: torch.Tensor,
    ) -> torch.Tensor:
        """Plan as vLLM asks for it; see `AbstractEplbPolicy`.

        Returns:
            physical_to_logical, int64 [L, P], on the CPU; the present one where no plan could be made.
        """
        old = old_global_expert_indices.cpu().long()
        rows = None
        if self.plans_here:
            rows = self.propose(lambda: weight, num_replicas, num_groups, num_nodes, num_ranks, old)
        return self.share(rows, old)

    @property
    def plans_here(self) -> bool:
        """Whether this is the rank that plans."""
        return self._group is None or torch.distributed.get_rank(self._group) == 0

    def propose(
        self,
        read_weight: Callable[[], torch.Tensor],
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old: torch.Tensor,
    ) -> torch.Tensor | None:
        """Plan on this rank alone, which may be in a thread of its own.

        Args:
            read_weight: returns the load of every logical expert, [L, E].
            num_replicas: as for `rebalance_experts`, as what follows.
            num_groups: see there.
            num_nodes: see there.
            num_ranks: see there.
            old: the present placement, int64 [L, P], on the CPU.

        Returns:
            What is to be served, int64 [L, P]; None where no plan could be made, which is said.
        """
        began, self._skipped = time.perf_counter(), "failed"
        try:
            weight = read_weight()
            found = self._planner.rebalance_experts(
                weight, num_replicas, num_groups, num_nodes, num_ranks, old
            )
            return self._select(found.cpu(), old, weight, num_ranks)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks wait for an answer
            message = "no plan could be made, so that the placement stays as it is on all ranks: %s: %s"
            logger.error(message, type(error).__name__, error)
            logger.debug("where it failed", exc_info=True)
            return None
        finally:
            self._meter.planned(time.perf_counter() - began)

    def share(self, rows: torch.Tensor | None, old: torch.Tensor) -> torch.Tensor:
        """Return the same on every rank: the proposal of the one that plans, or else the present placement.

        Args:
            rows: the proposal; None where there is none.
            old: the present placement, int64 [L, P], on the CPU.
        """
        rows = old.clone() if rows is None else rows
        if self._group is not None:
            torch.distributed.broadcast(rows, torch.distributed.get_global_rank(self._group, 0), self._group)
        self.moves, self.rows = not torch.equal(rows, old), rows
        if self.moves:
            self._meter.begin_move(anew=True)
        elif self.plans_here:
            self._meter.skipped(self._skipped or "unchanged")
        return rows

    def _select(
        self, found: torch.Tensor, old: torch.Tensor, weight: torch.Tensor, num_ranks: int
    ) -> torch.Tensor:
        num_experts = weight.shape[1]
        if found.shape != old.shape:
            msg = f"the plan is {list(found.shape)}; expected {list(old.shape)}, as the present placement is"
            raise LayoutError(msg)
        before, after = (
            # vLLM's own policy may put an expert twice on a rank.
            Placement(rows.numpy(), num_ranks, num_logical_experts=num_experts, allow_duplicates=True)
            for rows in (old, found)
        )
        load = weight.cpu().numpy()
        selection = self._rule.select(before, after, load)
        self._skipped = selection.skipped
        if self._meter.is_on:
            self._meter.measure_ranks(rank_load(before, load))
        if selection.reason is None:
            self._has_said = False
        elif not self._has_said:
            self._has_said = True
            logger.info("nothing is moved: %s; said once", selection.reason)
        return torch.from_numpy(selection.physical_to_logical.astype(np.int64))


__all__ = ["OnePlan"]
