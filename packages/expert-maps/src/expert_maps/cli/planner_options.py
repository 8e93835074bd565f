# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the planner is asked for, and what is shown of its plan: options of `plan`, most of them of `rescale` too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.mapping import CurrentFromOption
from expert_maps.cli.options import (
    AllowDuplicatesOption,
    AllowUnevenOption,
    CertifyOption,
    ExpertBytesOption,
    GroupsOption,
    JsonOption,
    MaxMovesOption,
    NodesOption,
    OutputOption,
    PhysicalOption,
    RedundantOption,
    TableOption,
    ToleranceOption,
    as_choice,
    as_max_moves,
)
from expert_maps.cli.plotting import PlotOption
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps._layers import LayerNames
    from expert_maps.cli.loading import Loaded
    from expert_maps.placement import Placement
    from expert_maps.planning import PlanResult


@dataclass(frozen=True)
class ShownOptions:
    """Where the map goes, and what is printed. The fields are the options' names."""

    output: OutputOption = None
    plot: PlotOption = None
    table: TableOption = False
    json: JsonOption = False


@dataclass(frozen=True)
class PlanOptions:
    """What the command line says of a plan; None where it says nothing. The fields are the options' names."""

    redundant: RedundantOption = None
    physical: PhysicalOption = None
    groups: GroupsOption = 1
    nodes: NodesOption = 1
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="balanced, or to compare: deepseek, deepseek_hierarchical, deepseek_global; reference: balanced, slow and to be read.",
        ),
    ] = "balanced"
    tolerance: ToleranceOption = None
    certify: CertifyOption = False
    current: Annotated[
        Path | None,
        typer.Option("--current", help="The map in use: plan from it, so that little moves."),
    ] = None
    source: CurrentFromOption = None
    max_moves: MaxMovesOption = None
    expert_bytes: ExpertBytesOption = None
    allow_uneven: AllowUnevenOption = False
    allow_duplicates: AllowDuplicatesOption = False

    def check(self) -> None:
        """Refuse what can be refused before anything is read.

        Raises:
            ExpertMapsError: an unknown policy, no number of moves, or an option about a map in use without one.
        """
        from expert_maps.policies import EVERY_POLICY

        as_choice("--policy", self.policy, EVERY_POLICY)
        as_max_moves(self.max_moves, None)
        given = {"--expert-bytes": self.expert_bytes, "--max-moves": self.max_moves, "--from": self.source}
        for name, value in given.items():
            if self.current is None and value is not None:
                msg = f"{name} is given; expected it with --current, the map that is moved from"
                raise ExpertMapsError(msg)

    def in_use(
        self, ep_size: int, experts: int | None, loaded: Loaded
    ) -> tuple[Placement | None, LayerNames]:
        """Return the map in use, if there is one, and how layers are named.

        Args:
            ep_size: its ranks.
            experts: what `--experts` says.
            loaded: the load that it carries.

        Raises:
            ExpertMapsError: it cannot be read, or is not for that load.
        """
        from expert_maps.cli.carrying import read_map_for
        from expert_maps.cli.mapping import MapOptions, alike

        if self.current is None:
            return None, loaded.layers
        of_map = MapOptions(
            source=self.source,
            ep_size=ep_size,
            experts=experts,
            allow_uneven=self.allow_uneven,
            allow_duplicates=self.allow_duplicates,
        )
        found, names = read_map_for(self.current, of_map, loaded)
        return alike(found, self.current), names

    def planner(
        self, loaded: Loaded, ep_size: int, before: Placement | None
    ) -> tuple[Callable[..., PlanResult], str | None]:
        """Return the planner's call without groups, nodes and progress; and why so many slots, if nobody said it.

        Args:
            loaded: the load that is planned for.
            ep_size: ranks.
            before: the map in use, or None.

        Raises:
            LayoutError: the counts contradict each other.
        """
        from functools import partial

        from expert_maps.cli.sizing import slots_or_proposal
        from expert_maps.planning import plan

        trace = loaded.load
        slots, proposed = slots_or_proposal(
            self.redundant, self.physical, trace.num_experts, ep_size, before, allow_uneven=self.allow_uneven
        )
        plans = partial(
            plan,
            trace,
            num_physical_experts=slots,
            ep_size=ep_size,
            policy=self.policy,
            tolerance=self.tolerance,
            current=before,
            max_moves=as_max_moves(self.max_moves, None),
            allow_uneven=self.allow_uneven,
            allow_duplicates=self.allow_duplicates,
            certify=self.certify,
        )
        return plans, proposed
