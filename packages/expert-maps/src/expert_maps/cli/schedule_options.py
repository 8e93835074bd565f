# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Options of `diff --schedule`; kept here, so that help needs no scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.costs import BandwidthOption
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from expert_maps.cli.scheduled import Way
    from expert_maps.placement import Placement


@dataclass(frozen=True)
class ScheduleOptions:
    """What the command line says of the way from one map to another. The fields are the options' names."""

    schedule: Annotated[
        bool,
        typer.Option(
            "--schedule", help="Also who sends what to whom, in rounds; --table or --layer lists them."
        ),
    ] = False
    bandwidth: BandwidthOption = None
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", help="Servers that the ranks are spread over: near ranks send first."),
    ] = None

    def check(self) -> None:
        """Refuse options that are about a schedule, where none is asked for.

        Raises:
            ExpertMapsError: as said.
        """
        for name, value in {"--bandwidth": self.bandwidth, "--nodes": self.nodes}.items():
            if value is not None and not self.schedule:
                msg = f"{name} is {value}; expected it with --schedule, which it is about"
                raise ExpertMapsError(msg)

    def way(self, old: Placement, new: Placement, expert_bytes: int | None) -> Way | None:
        """Return the way from one placement to another, if it is asked for.

        Raises:
            ExpertMapsError: as `Way.of`.
        """
        if not self.schedule:
            return None
        from expert_maps.cli.scheduled import Way

        return Way.of(old, new, self.nodes, expert_bytes, self.bandwidth)
