# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps rescale`: a map for fewer or more ranks, from the map in use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.mapping import FromOption
from expert_maps.cli.options import (
    AllowUnevenOption,
    CertifyOption,
    ExpertBytesOption,
    GroupsOption,
    JsonOption,
    MapArgument,
    MaxMovesOption,
    NodesOption,
    OutputOption,
    PhysicalOption,
    RedundantOption,
    TableOption,
    ToleranceOption,
    as_max_moves,
    as_numbers,
    refuse_two_stdins,
)
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from pathlib import Path

    from expert_maps._layers import LayerNames
    from expert_maps.cli.loading import Loaded
    from expert_maps.cli.options import Inputs
    from expert_maps.placement import Placement
    from expert_maps.results import PlanResult


@dataclass(frozen=True)
class RescaleOptions:
    """What the command line says of the ranks and slots afterwards, and of the way there. The fields are the options' names."""

    ep_size: Annotated[
        int | None, typer.Option("--ep-size", help="Ranks afterwards; those that do not fail if not given.")
    ] = None
    failed_ranks: Annotated[
        str, typer.Option("--failed-ranks", help="Ranks that are lost, separated by commas.")
    ] = ""
    redundant: RedundantOption = None
    physical: PhysicalOption = None
    groups: GroupsOption = 1
    nodes: NodesOption = 1
    tolerance: ToleranceOption = None
    certify: CertifyOption = False
    max_moves: MaxMovesOption = None
    expert_bytes: ExpertBytesOption = None
    source: FromOption = None
    ranks_now: Annotated[
        int | None,
        typer.Option(
            "--ranks-now", help="Ranks of MAP, where its format does not say them (SGLang, vLLM …)."
        ),
    ] = None
    allow_uneven: AllowUnevenOption = False

    def check(self) -> None:
        """Refuse what cannot be read, before any file is.

        Raises:
            ExpertMapsError: as said.
        """
        as_max_moves(self.max_moves, 0)
        as_numbers("--failed-ranks", self.failed_ranks)

    def read(self, file: Path, experts: int | None, loaded: Loaded) -> tuple[Placement, LayerNames]:
        """Return the map in use, and how layers are named.

        Raises:
            ExpertMapsError: it cannot be read, or is not of the load's counts.
        """
        from expert_maps.cli.carrying import read_map_for
        from expert_maps.cli.mapping import MapOptions, alike
        from expert_maps.formats.mapfile import RanksUnsaidError

        of_map = MapOptions(
            source=self.source, ep_size=self.ranks_now, experts=experts, allow_uneven=self.allow_uneven
        )
        try:
            found, names = read_map_for(file, of_map, loaded)
        except RanksUnsaidError as error:  # --ep-size are the ranks afterwards
            msg = str(error).replace("ep_size (--ep-size)", "--ranks-now")
            raise ExpertMapsError(msg) from error
        return alike(found, file), names

    def planner(self, current: Placement, loaded: Loaded) -> partial[PlanResult]:
        """Return the planner's call, without groups, nodes and progress.

        Raises:
            LayoutError: the slots contradict each other.
        """
        from expert_maps.cli.sizing import slots_of_layer
        from expert_maps.elastic import rescale as rescale_placement

        failed = as_numbers("--failed-ranks", self.failed_ranks)
        left = current.ep_size - len(set(failed)) if self.ep_size is None else self.ep_size
        slots = slots_of_layer(
            self.redundant,
            self.physical,
            loaded.load.num_experts,
            left if left > 0 else None,
            allow_uneven=self.allow_uneven,
        )
        return partial(
            rescale_placement,
            current,
            loaded.load,
            ep_size=self.ep_size,
            failed_ranks=failed,
            num_physical_experts=slots,
            tolerance=self.tolerance,
            max_moves=as_max_moves(self.max_moves, 0),
            allow_uneven=self.allow_uneven,
            certify=self.certify,
        )


def rescale(
    file: MapArgument,
    loads: LoadsArgument,
    asked: RescaleOptions = RescaleOptions(),
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    output: OutputOption = None,
    table: TableOption = False,
    json: JsonOption = False,
) -> None:
    """Plan for the ranks that are left, or for more, with as few moves as possible.

    Ranks that stay keep their order and their copies, and are numbered anew from 0; new ranks come after them. Before
    is the linear layout on the new ranks. Without --redundant and --physical every rank has as many slots as now.
    """
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.planned import Making
    from expert_maps.cli.writing import check_output

    inputs: Inputs = {"MAP": file, "LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    target = check_output(output, inputs, json=json)
    asked.check()
    found = inspect_loads(loads, said)
    current, names = asked.read(file, said.experts, found)
    made = Making(
        "rescale",
        asked.planner(current, found),
        found,
        said,
        target,
        asked.groups,
        asked.nodes,
        names=names,
        expert_bytes=asked.expert_bytes,
    )
    made.run(table=table, json=json)
