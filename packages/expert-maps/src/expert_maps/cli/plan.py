# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps plan`: a placement balanced for a recorded load."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.mapping import CurrentFromOption
from expert_maps.cli.options import (
    AllowDuplicatesOption,
    AllowUnevenOption,
    CertifyOption,
    EpSizeOption,
    ExpertBytesOption,
    GroupsOption,
    Inputs,
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
    refuse_two_stdins,
)
from expert_maps.cli.plotting import PlotOption
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_maps._layers import LayerNames
    from expert_maps.cli.loading import Loaded
    from expert_maps.cli.mapping import MapOptions
    from expert_maps.placement import Placement


def plan(
    loads: LoadsArgument,
    ep_size: EpSizeOption,
    redundant: RedundantOption = None,
    physical: PhysicalOption = None,
    groups: GroupsOption = 1,
    nodes: NodesOption = 1,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="balanced, or to compare: deepseek, deepseek_hierarchical, deepseek_global; reference: balanced, slow and to be read.",
        ),
    ] = "balanced",
    tolerance: ToleranceOption = None,
    certify: CertifyOption = False,
    current: Annotated[
        Path | None,
        typer.Option("--current", help="The map in use: plan from it, so that little moves."),
    ] = None,
    source: CurrentFromOption = None,
    max_moves: MaxMovesOption = None,
    expert_bytes: ExpertBytesOption = None,
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    output: OutputOption = None,
    plot: PlotOption = None,
    table: TableOption = False,
    allow_uneven: AllowUnevenOption = False,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Plan which experts get copies and where they sit, and print balancedness before and after.

    Before is the map in use (--current), or the linear layout without redundant experts. Balancedness is mean / max
    rank load; 1 is perfect; over all layers it is the ratio of the sums, as vLLM logs it. The gap, for a load of one
    step, is how far the hottest rank is above a proved lower bound: no plan can gain more than that. A load of several
    steps is planned for the sum over steps of the hottest rank; balancedness over steps is the ratio of those sums.

    Give --redundant or --physical. Without either, the map in use says it, or the least redundancy that divides by the
    ranks is taken, and named.

    A map in use that breaks the plan's rules (an expert twice on a rank, a group on several nodes) is put right first,
    which can make a rank hotter than before; a warning says so.
    """
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.mapping import MapOptions
    from expert_maps.cli.planned import Making
    from expert_maps.cli.plotting import check_plot
    from expert_maps.cli.sizing import slots_or_proposal
    from expert_maps.cli.writing import check_output
    from expert_maps.planning import plan as plan_placement
    from expert_maps.policies import EVERY_POLICY

    inputs: Inputs = {"LOAD": loads, "--map": said.map, "--current": current, "--model": said.model}
    refuse_two_stdins(inputs)
    target = check_output(output, inputs, json=json)
    drawn = check_plot(plot, inputs)
    as_choice("--policy", policy, EVERY_POLICY)
    moves = as_max_moves(max_moves, None)
    _refuse_without(current, {"--expert-bytes": expert_bytes, "--max-moves": max_moves, "--from": source})
    loaded = inspect_loads(loads, said)
    trace = loaded.load
    of_map = MapOptions(
        source=source,
        ep_size=ep_size,
        experts=said.experts,
        allow_uneven=allow_uneven,
        allow_duplicates=allow_duplicates,
    )
    before, names = _in_use(current, of_map, loaded)
    slots, proposed = slots_or_proposal(
        redundant, physical, trace.num_experts, ep_size, before, allow_uneven=allow_uneven
    )
    plans = partial(
        plan_placement,
        trace,
        num_physical_experts=slots,
        ep_size=ep_size,
        policy=policy,
        tolerance=tolerance,
        current=before,
        max_moves=moves,
        allow_uneven=allow_uneven,
        allow_duplicates=allow_duplicates,
        certify=certify,
    )
    made = Making(
        "plan", plans, loaded, said, target, groups, nodes, before, expert_bytes, proposed, names, drawn
    )
    made.run(table=table, json=json)


def _refuse_without(current: Path | None, given: Mapping[str, object]) -> None:
    """Refuse options that are about a map in use, where none is given."""
    for name, value in given.items():
        if current is None and value is not None:
            msg = f"{name} is given; expected it with --current, the map that is moved from"
            raise ExpertMapsError(msg)


def _in_use(current: Path | None, of_map: MapOptions, loaded: Loaded) -> tuple[Placement | None, LayerNames]:
    """Return the map in use, if there is one, and how layers are named."""
    from expert_maps.cli.carrying import read_map_for
    from expert_maps.cli.mapping import alike

    if current is None:
        return None, loaded.layers
    found, names = read_map_for(current, of_map, loaded)
    return alike(found, current), names
