# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps plan`: a placement balanced for a recorded load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expert_maps.cli.common import (
    AllowDuplicatesOption,
    AllowUnevenOption,
    JsonOption,
    OutputOption,
    ToleranceOption,
    bad_input,
    progress_bar,
    read_map,
)
from expert_maps.cli.loading import (
    FilesOption,
    FormatOption,
    KeyOption,
    LayersOption,
    LoadExpertsOption,
    LoadModelOption,
    LoadsArgument,
    MoeLayersOption,
    SlotMapOption,
    StepsOption,
    read_loads,
)
from expert_maps.cli.report import linear_layout, print_result, warn_of_mended
from expert_maps.errors import ExpertMapsError
from expert_maps.formats import vllm_ascend, write_placement
from expert_maps.planning import plan as plan_placement
from expert_maps.policies import DEFAULT_POLICY, POLICY_NAMES


def plan(
    load: LoadsArgument,
    physical: Annotated[
        int, typer.Option("--physical", help="Physical experts (slots) of a layer, over all ranks.")
    ],
    ep_size: Annotated[int, typer.Option("--ep-size", help="Expert-parallel ranks.")],
    groups: Annotated[int, typer.Option("--groups", help="The router's expert groups.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", help="Servers that the ranks are spread over.")] = 1,
    policy: Annotated[
        str, typer.Option("--policy", help=f"One of {', '.join(POLICY_NAMES)}.")
    ] = DEFAULT_POLICY,
    tolerance: ToleranceOption = None,
    current: Annotated[
        Path | None,
        typer.Option("--current", help="The map in use: plan from it, so that little moves."),
    ] = None,
    max_moves: Annotated[
        int | None,
        typer.Option(
            "--max-moves", help="Slots of a layer that may change, with --current; any number if not given."
        ),
    ] = None,
    expert_bytes: Annotated[
        int | None,
        typer.Option(
            "--expert-bytes", help="Bytes of one expert's weights, to add up transfers with --current."
        ),
    ] = None,
    key: KeyOption = None,
    format: FormatOption = None,
    layers: LayersOption = None,
    map: SlotMapOption = None,
    files: FilesOption = None,
    steps: StepsOption = None,
    model: LoadModelOption = None,
    experts: LoadExpertsOption = None,
    moe_layers: MoeLayersOption = None,
    output: OutputOption = None,
    allow_uneven: AllowUnevenOption = False,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Plan which experts get copies and where they sit, and print balancedness before and after.

    Before is the map in use (--current), or the linear layout without redundant experts. Balancedness is mean /
    max rank load; 1 is perfect. The gap, for a load of one step, is how far the hottest rank is above a proved lower bound: no plan can gain
    more than that. The total is the ratio of the sums over layers, as vLLM logs it. A load of several steps is
    planned for the sum over steps of the hottest rank; balancedness over steps is the ratio of those sums. A map in
    use that breaks the plan's rules (an expert twice on a rank, a group on several nodes) is put right first, which can
    make a rank hotter than before; a warning says so.
    """
    with bad_input():
        if output is not None:
            vllm_ascend.check_output_name(output)
        trace = read_loads(
            load,
            key=key,
            format=format,
            layers=layers,
            map=map,
            files=files,
            steps=steps,
            model=model,
            experts=experts,
            moe_layers=moe_layers,
        )
        before = (
            None
            if current is None
            else read_map(current, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates)
        )
        if expert_bytes is not None and before is None:
            msg = f"--expert-bytes is {expert_bytes}; expected it with --current, the map that is moved from"
            raise ExpertMapsError(msg)
        with progress_bar("planning layers") as progress:
            result = plan_placement(
                trace,
                num_physical_experts=physical,
                ep_size=ep_size,
                policy=policy,
                num_groups=groups,
                num_nodes=nodes,
                tolerance=tolerance,
                current=before,
                max_moves=max_moves,
                allow_uneven=allow_uneven,
                allow_duplicates=allow_duplicates,
                progress=progress,
            )
        size = None if expert_bytes is None or result.moves is None else result.moves.bytes(expert_bytes)
        warn_of_mended(result, trace, before)
        before = before or linear_layout(trace, result.placement.ep_size)
        if output is not None:
            write_placement(result.placement, output)
    print_result(trace, before, result, output, size, as_json=json)
