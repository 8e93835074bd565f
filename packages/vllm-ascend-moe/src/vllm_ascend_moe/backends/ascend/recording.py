# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The expert load beside vllm-ascend, step by step: what its own EPLB counts in every slot, read before it is forgotten.

vllm-ascend counts the tokens of this rank's slots on the device, adds them up over a cycle and clears them. At the end of
each forward the difference to the forward before is one step's load; added up over ranks and by expert it is a row of
the record. Nothing waits for the device.

A step in which no rank serves anything (warm-up, graphs being captured) is none. In a step in which one data-parallel rank
serves and another is idle, vllm-ascend counts the idle one's dummy tokens too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vllm_ascend_moe._log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_ascend_moe.backends.ascend.model import Rows
    from vllm_ascend_moe.core.session import Session

# Steps between two lines about balancedness, where none are given.
LOG_INTERVAL = 1


class Recording:
    """One engine's load on this rank."""

    def __init__(self, session: Session) -> None:
        """Count nothing yet.

        Args:
            session: the engine's, whose recorder takes the steps on the rank that writes.
        """
        self._session = session
        self._updator: Any = None
        # The expert in every slot, [L, P], on the CPU until the load's device is known.
        self._experts = torch.empty(0, 0, dtype=torch.int64)
        self._num_experts = 0
        # As vllm-ascend had it after the forward before, [L, slots of this rank].
        self._before = torch.empty(0)
        self._is_dummy = False
        self._steps = 0

    def begin(self, updator: Any, rows: Sequence[Rows]) -> None:
        """Count from now on.

        Args:
            updator: vllm-ascend's, warmed up.
            rows: the expert in each slot of each rank, of every layer.
        """
        self._updator = updator
        self._before = self._read()
        experts = torch.tensor(rows, dtype=torch.int64).flatten(1)
        self._num_experts = 1 + int(experts.max())
        self._experts = experts.to(self._before.device)

    def moved(self, index: int, rows: Rows) -> None:
        """Count by a layer's new row once its experts have moved."""
        if self._updator is not None:
            self._experts[index].copy_(torch.tensor(rows, dtype=torch.int64).flatten())

    def around_dummy_run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Let a forward run that serves nobody: to warm up, to capture graphs, or beside data-parallel ranks that serve."""
        self._is_dummy = True
        try:
            return original(*args, **kwargs)
        finally:
            self._is_dummy = False
            if self._updator is not None:
                # It may have cleared what was counted.
                self._before = self._read()

    def around_forward_end(
        self, original: Callable[..., Any], updator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Take a step's load before vllm-ascend plans by it, moves experts or clears it."""
        if updator is not self._updator:
            return original(updator, *args, **kwargs)
        self._count()
        result = original(updator, *args, **kwargs)
        self._before = self._read()
        return result

    def _read(self) -> torch.Tensor:
        """Return what vllm-ascend has counted since it cleared, [L, slots]: one of its policies counts by step."""
        load: torch.Tensor = self._updator.adaptor.get_rank_expert_workload()
        return load.sum(dim=1) if load.dim() > self._experts.dim() else load.clone()

    def _count(self) -> None:
        session, group = self._session, self._updator.comm_group
        step = self._read() - self._before
        layers, slots = step.shape
        # By physical expert, and at the end how many ranks serve; 32 bits are what every collective can add up.
        told = torch.zeros(layers * slots * group.world_size + 1, dtype=torch.int32, device=step.device)
        by_rank = told[:-1].view(layers, group.world_size, slots)
        by_rank[:, group.rank_in_group] = step.to(torch.int32)
        told[-1] = 0 if self._is_dummy else 1
        torch.distributed.all_reduce(told, group=group.device_group)
        if group.rank_in_group != 0:
            return
        by_rank *= told[-1] > 0
        if session.recorder is not None:
            load = torch.zeros((layers, self._num_experts), dtype=torch.int64, device=step.device)
            session.recorder.add(load.scatter_add_(1, self._experts, by_rank.flatten(1).long()))
        self._steps += 1
        interval = session.settings.log_balancedness_interval or LOG_INTERVAL
        if session.settings.log_balancedness and not self._is_dummy and self._steps % interval == 0:
            self._log(by_rank)

    def _log(self, by_rank: torch.Tensor) -> None:
        """Say how even the step was, as vLLM's EPLB says it: tokens of ranks, mean and maximum, over layers."""
        ranks = by_rank.sum(dim=2).double().cpu()
        self._session.meter.measure_ranks(ranks.numpy())
        mean, peak = float(ranks.mean(dim=1).sum()), float(ranks.max(dim=1).values.sum())
        logger.info(
            "EPLB step: %d: avg_tokens=%.2f, max_tokens=%d, balancedness=%.4f",
            self._steps,
            mean,
            peak,
            mean / peak if peak else 0.0,
        )


__all__ = ["LOG_INTERVAL", "Recording"]
