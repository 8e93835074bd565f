# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `plan` and `rescale` do around the planner."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._layers import UNNUMBERED, LayerNames
from expert_maps.cli.work import work

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps.cli.loading import Loaded, LoadOptions
    from expert_maps.cli.writing import Output
    from expert_maps.layered import AnyPlacement
    from expert_maps.placement import Placement
    from expert_maps.planning import PlanResult


@dataclass(frozen=True)
class Making:
    """What `plan` and `rescale` do once they know what to plan.

    Attributes:
        command: which of them it is.
        plans: the planner's call, without groups, nodes and progress.
        loaded: the load that is planned for, and the model that was said.
        said: how it was read.
        target: where the map goes.
        groups: the router's expert groups.
        nodes: servers.
        current: the map in use, where it is on as many ranks as the plan.
        expert_bytes: as it was given.
        proposed: why there are so many slots, where nobody said how many.
        names: how layers are named.
        drawn: where a picture goes; None for nowhere.
    """

    command: str
    plans: Callable[..., PlanResult]
    loaded: Loaded
    said: LoadOptions
    target: Output
    groups: int
    nodes: int
    current: Placement | None = None
    expert_bytes: int | None = None
    proposed: str | None = None
    names: LayerNames = UNNUMBERED
    drawn: Output | None = None

    def run(self, *, table: bool, json: bool) -> None:
        """Plan, write the map and print what it is worth.

        Raises:
            ExpertMapsError: there is no such plan, or it cannot be written.
        """
        from expert_maps.cli.plan_report import PlanReport

        result = work(
            "planning layers",
            lambda progress: self.plans(num_groups=self.groups, num_nodes=self.nodes, progress=progress),
        )
        model = self.loaded.model
        size = model.expert_bytes if self.expert_bytes is None and model is not None else self.expert_bytes
        report = PlanReport(
            result,
            self.loaded.load,
            self.current,
            self.target,
            size,
            self.proposed,
            ungrouped_balancedness(result),
            self.names,
            "" if size is not None or model is None else model.expert_bytes_rule,
        )
        report.warn_of_mended()
        _ = report.moved_bytes  # refused before anything is written
        self.target.write(self._map_text(result))
        if self.drawn is not None:
            from expert_maps.cli.plotting import draw_placement, write_plot

            write_plot(self.drawn, lambda: draw_placement(result.placement, self.loaded.load, self.current))
        report.print(table=table, json=json)

    def _map_text(self, result: PlanResult) -> str:
        """Return the map that the command writes, with how it was made."""
        made = {"command": self.command, "policy": result.policy}
        if result.activation is not None:
            made["objective"] = f"activated, {result.activation.batch.describe()}"
        return map_text(result.placement, self.loaded, self.said, self.names, made)


def map_text(
    placement: AnyPlacement, loaded: Loaded, said: LoadOptions, names: LayerNames, made: dict[str, str]
) -> str:
    """Return a map with how it was made.

    Args:
        placement: what is written.
        loaded: what was planned for.
        said: how it was read.
        names: how layers are named.
        made: what is told beside the load.
    """
    from expert_maps.formats.native import dumps

    file = loaded.file
    counts = np.ascontiguousarray(file.load.counts, dtype="<f8")
    origin = {"load": f"{file.form}, SHA-256 of its counts {hashlib.sha256(counts.tobytes()).hexdigest()}"}
    name = None if said.model in {None, "-"} else Path(str(said.model)).name
    return dumps(placement, model=name, layers=names.numbers, provenance=made | origin)


def ungrouped_balancedness(result: PlanResult) -> float | None:
    """Return the overall balancedness of the same plan without groups; None where none were kept together."""
    if not result.keeps_groups:
        return None
    free = work("planning without groups", result.without_groups)
    return free.overall_balancedness
