# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps rescale`: a map for fewer or more ranks, from the map in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expert_maps.cli.common import (
    AllowUnevenOption,
    FileArgument,
    JsonOption,
    OutputOption,
    ToleranceOption,
    bad_input,
    read_map,
)
from expert_maps.cli.report import linear_layout, print_result, warn_of_mended
from expert_maps.elastic import rescale as rescale_placement
from expert_maps.errors import ExpertMapsError
from expert_maps.formats import read_load, vllm_ascend, write_placement


def rescale(
    file: FileArgument,
    load: Annotated[Path, typer.Argument(metavar="LOAD", help="Tokens routed to each expert, as for plan.")],
    ep_size: Annotated[
        int | None, typer.Option("--ep-size", help="Ranks afterwards; those that do not fail if not given.")
    ] = None,
    failed_ranks: Annotated[
        str, typer.Option("--failed-ranks", help="Ranks that are lost, separated by commas.")
    ] = "",
    physical: Annotated[
        int | None,
        typer.Option(
            "--physical", help="Slots of a layer afterwards; as many on a rank as now if not given."
        ),
    ] = None,
    groups: Annotated[int, typer.Option("--groups", help="The router's expert groups.")] = 1,
    nodes: Annotated[
        int, typer.Option("--nodes", help="Servers that the ranks are spread over, afterwards.")
    ] = 1,
    tolerance: ToleranceOption = None,
    max_moves: Annotated[
        int,
        typer.Option(
            "--max-moves",
            min=-1,
            help="Slots of a layer that may change beyond those that must; -1 for any number.",
        ),
    ] = 0,
    expert_bytes: Annotated[
        int | None, typer.Option("--expert-bytes", help="Bytes of one expert's weights, to add up transfers.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="The array of the load file, as for plan.")] = None,
    output: OutputOption = None,
    allow_uneven: AllowUnevenOption = False,
    json: JsonOption = False,
) -> None:
    """Plan for the ranks that are left, or for more, with as few moves as possible.

    Ranks that stay keep their order and their copies, and are numbered anew from 0; new ranks come after them. Before is
    the linear layout on the new ranks.
    """
    with bad_input():
        if output is not None:
            vllm_ascend.check_output_name(output)
        current = read_map(file, allow_uneven=allow_uneven)
        trace = read_load(load, key)
        result = rescale_placement(
            current,
            trace,
            ep_size=ep_size,
            failed_ranks=_as_ranks(failed_ranks),
            num_physical_experts=physical,
            num_groups=groups,
            num_nodes=nodes,
            tolerance=tolerance,
            max_moves=None if max_moves < 0 else max_moves,
            allow_uneven=allow_uneven,
        )
        size = None if expert_bytes is None or result.moves is None else result.moves.bytes(expert_bytes)
        warn_of_mended(result, trace)
        before = linear_layout(trace, result.placement.ep_size)
        if output is not None:
            write_placement(result.placement, output)
    print_result(trace, before, result, output, size, as_json=json)


def _as_ranks(text: str) -> list[int]:
    try:
        return [int(rank) for rank in text.split(",") if rank.strip()]
    except ValueError as error:
        msg = f"--failed-ranks is {text!r}; expected rank numbers separated by commas, like 3,5"
        raise ExpertMapsError(msg) from error
