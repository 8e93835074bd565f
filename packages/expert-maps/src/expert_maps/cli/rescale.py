# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps rescale`: a map for fewer or more ranks, from the map in use."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.mapping import FromOption
from expert_maps.cli.options import (
    AllowUnevenOption,
    ExpertBytesOption,
    GroupsOption,
    Inputs,
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


def rescale(
    file: MapArgument,
    loads: LoadsArgument,
    ep_size: Annotated[
        int | None, typer.Option("--ep-size", help="Ranks afterwards; those that do not fail if not given.")
    ] = None,
    failed_ranks: Annotated[
        str, typer.Option("--failed-ranks", help="Ranks that are lost, separated by commas.")
    ] = "",
    redundant: RedundantOption = None,
    physical: PhysicalOption = None,
    groups: GroupsOption = 1,
    nodes: NodesOption = 1,
    tolerance: ToleranceOption = None,
    max_moves: MaxMovesOption = None,
    expert_bytes: ExpertBytesOption = None,
    source: FromOption = None,
    ranks_now: Annotated[
        int | None,
        typer.Option(
            "--ranks-now", help="Ranks of MAP, where its format does not say them (SGLang, vLLM …)."
        ),
    ] = None,
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    output: OutputOption = None,
    table: TableOption = False,
    allow_uneven: AllowUnevenOption = False,
    json: JsonOption = False,
) -> None:
    """Plan for the ranks that are left, or for more, with as few moves as possible.

    Ranks that stay keep their order and their copies, and are numbered anew from 0; new ranks come after them. Before
    is the linear layout on the new ranks. Without --redundant and --physical every rank has as many slots as now.
    """
    from expert_maps.cli.carrying import read_map_for
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.mapping import MapOptions, alike
    from expert_maps.cli.planned import Making
    from expert_maps.cli.sizing import slots_of_layer
    from expert_maps.cli.writing import check_output
    from expert_maps.elastic import rescale as rescale_placement
    from expert_maps.formats.mapfile import RanksUnsaidError

    inputs: Inputs = {"MAP": file, "LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    target = check_output(output, inputs, json=json)
    moves = as_max_moves(max_moves, 0)
    failed = as_numbers("--failed-ranks", failed_ranks)
    found = inspect_loads(loads, said)
    trace = found.load
    of_map = MapOptions(source=source, ep_size=ranks_now, experts=said.experts, allow_uneven=allow_uneven)
    try:
        read, names = read_map_for(file, of_map, found)
    except RanksUnsaidError as error:  # --ep-size are the ranks afterwards
        msg = str(error).replace("ep_size (--ep-size)", "--ranks-now")
        raise ExpertMapsError(msg) from error
    current = alike(read, file)
    left = current.ep_size - len(set(failed)) if ep_size is None else ep_size
    slots = slots_of_layer(
        redundant, physical, trace.num_experts, left if left > 0 else None, allow_uneven=allow_uneven
    )
    plans = partial(
        rescale_placement,
        current,
        trace,
        ep_size=ep_size,
        failed_ranks=failed,
        num_physical_experts=slots,
        tolerance=tolerance,
        max_moves=moves,
        allow_uneven=allow_uneven,
    )
    made = Making(
        "rescale", plans, found, said, target, groups, nodes, names=names, expert_bytes=expert_bytes
    )
    made.run(table=table, json=json)
