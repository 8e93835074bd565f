# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `plan` and `rescale` do around the planner."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps.cli.work import work

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps.cli.loading import LoadOptions
    from expert_maps.cli.writing import Output
    from expert_maps.formats.loads import LoadFile
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement
    from expert_maps.planning import PlanResult


@dataclass(frozen=True)
class Making:
    """What `plan` and `rescale` do once they know what to plan.

    Attributes:
        command: which of them it is.
        plans: the planner's call, without groups, nodes and progress.
        found: the load that is planned for.
        said: how it was read.
        target: where the map goes.
        groups: the router's expert groups.
        nodes: servers.
        current: the map in use, where it is on as many ranks as the plan.
        expert_bytes: as it was given.
        proposed: why there are so many slots, where nobody said how many.
    """

    command: str
    plans: Callable[..., PlanResult]
    found: LoadFile
    said: LoadOptions
    target: Output
    groups: int
    nodes: int
    current: Placement | None = None
    expert_bytes: int | None = None
    proposed: str | None = None

    def run(self, *, table: bool, json: bool) -> None:
        """Plan, write the map and print what it is worth.

        Raises:
            ExpertMapsError: there is no such plan, or it cannot be written.
        """
        from expert_maps.cli.report import PlanReport

        result = work(
            "planning layers",
            lambda progress: self.plans(num_groups=self.groups, num_nodes=self.nodes, progress=progress),
        )
        nodes = 1 if result.policy == "deepseek_global" else self.nodes
        ungrouped = ungrouped_balancedness(self.plans, self.found.load, nodes)
        size = bytes_of_expert(self.expert_bytes, self.said.model)
        report = PlanReport(
            result, self.found.load, self.current, self.target, size, self.proposed, ungrouped
        )
        report.warn_of_mended()
        _ = report.moved_bytes  # refused before anything is written
        self.target.write(map_text(result, self.found, self.said, self.command))
        report.print(table=table, json=json)


def map_text(result: PlanResult, found: LoadFile, said: LoadOptions, command: str) -> str:
    """Return the map that a command writes, with how it was made.

    Args:
        result: the plan.
        found: the load that was planned for.
        said: how it was read.
        command: which command it is.
    """
    from expert_maps.formats.native import dumps

    counts = np.ascontiguousarray(found.load.counts, dtype="<f8")
    made = {
        "command": command,
        "policy": result.policy,
        "load": f"{found.form}, SHA-256 of its counts {hashlib.sha256(counts.tobytes()).hexdigest()}",
    }
    name = None if said.model in {None, "-"} else Path(str(said.model)).name
    return dumps(result.placement, model=name, layers=found.layers, provenance=made)


def bytes_of_expert(expert_bytes: int | None, model: str | None) -> int | None:
    """Return what `--expert-bytes` says, else what the model's configuration does; None where neither can."""
    if expert_bytes is not None or model in {None, "-"}:
        return expert_bytes
    from expert_maps.models import model_counts

    return model_counts(str(model)).expert_bytes


def ungrouped_balancedness(plans: Callable[..., PlanResult], trace: ExpertLoad, nodes: int) -> float | None:
    """Return the overall balancedness of the same plan without groups; None on one node, where they bind nothing.

    Args:
        plans: the planner's call, without groups, nodes and progress.
        trace: what is planned for.
        nodes: servers.
    """
    if nodes == 1:
        return None
    result = work("planning without groups", lambda progress: plans(progress=progress))
    return metrics.overall_balancedness(result.placement, trace)
