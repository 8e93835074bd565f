# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps generate`: an initial placement by the name of its layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps._words import counted
from expert_maps.cli.mapping import MapModelOption
from expert_maps.cli.model import read_model
from expert_maps.cli.options import (
    AllowDuplicatesOption,
    EpSizeOption,
    JsonOption,
    OutputOption,
    PhysicalOption,
    RedundantOption,
    as_choice,
)
from expert_maps.errors import LayoutError

if TYPE_CHECKING:
    from expert_maps.cli.writing import Output
    from expert_maps.placement import Placement


@dataclass(frozen=True)
class SharedOptions:
    """Which shared experts are mixed in. The fields are the options' names."""

    shared: Annotated[
        int,
        typer.Option(
            "--shared", help="Shared experts to mix in: each rank gets one more slot for one of them."
        ),
    ] = 0
    shared_on_every_rank: Annotated[
        bool,
        typer.Option(
            "--shared-on-every-rank", help="Give every rank all shared experts instead of one in turn."
        ),
    ] = False


def generate(
    ep_size: EpSizeOption,
    experts: Annotated[int | None, typer.Option("--experts", help="Routed experts of a layer.")] = None,
    redundant: RedundantOption = None,
    physical: PhysicalOption = None,
    layers: Annotated[
        int | None, typer.Option("--layers", help="MoE layers; 1 if neither this nor --model is given.")
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="One of linear, round_robin, ring, append.")
    ] = "ring",
    mixed: SharedOptions = SharedOptions(),
    model: MapModelOption = None,
    output: OutputOption = None,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Generate an initial placement, the same in every layer; without --output print the map itself.

    Without --redundant and --physical there are no redundant experts.
    """
    from expert_maps.cli.writing import Output, check_output
    from expert_maps.formats.native import dumps
    from expert_maps.layouts import LAYOUT_NAMES, generate_placement

    target = check_output(output, {"--model": model}, json=json)
    of_model = None if model is None else read_model(model, layers)
    if of_model is not None:
        experts = of_model.num_experts if experts is None else experts
        layers = of_model.num_layers if layers is None else layers
    experts = _known(experts)
    placement = generate_placement(
        as_choice("--layout", layout, LAYOUT_NAMES),
        num_experts=experts,
        ep_size=ep_size,
        num_redundant_experts=_copies(redundant, physical, experts),
        num_layers=1 if layers is None else layers,
        num_shared_experts=mixed.shared,
        shared_on_every_rank=mixed.shared_on_every_rank,
        allow_duplicates=allow_duplicates,
    )
    text = dumps(
        placement,
        model=None if model in {None, "-"} else Path(str(model)).name,
        layers=(of_model and of_model.moe_layers) or None,
        num_shared_experts=mixed.shared,
        provenance={"command": "generate", "layout": layout},
    )
    if output is None and not json:
        Output(Path("-")).write(text)
    else:
        target.write(text)
        _print(placement, layout, target, json=json)


def _known(experts: int | None) -> int:
    if experts is None:
        msg = "the number of experts is missing; expected --experts or --model"
        raise LayoutError(msg)
    return experts


def _copies(redundant: int | None, physical: int | None, experts: int) -> int:
    """Return P - E; none where neither option is given."""
    from expert_maps.cli.sizing import slots_of_layer
    from expert_maps.validation import as_count

    if physical is None:
        return 0 if redundant is None else redundant
    slots_of_layer(redundant, physical, experts, None)
    return as_count("--physical", physical, experts, error=LayoutError) - experts


def _print(placement: Placement, layout: str, target: Output, *, json: bool) -> None:
    from expert_maps.cli.output import print_json, say

    if json:
        print_json(
            {
                "layout": layout,
                "num_layers": placement.num_layers,
                "num_logical_experts": placement.num_logical_experts,
                "num_redundant_experts": placement.num_redundant_experts,
                "ep_size": placement.ep_size,
                "slots_per_rank": placement.slots_per_rank.tolist(),
                "digest": placement.digest,
                "output": target.name,
                "replaced": target.replaces,
            }
        )
        return
    slots = "/".join(map(str, sorted(set(placement.slots_per_rank.tolist()))))
    line = (
        f"{target.where}: {layout}, {counted(placement.num_layers, 'layer')}, {counted(placement.num_logical_experts, 'expert')}, "
        f"{placement.num_redundant_experts} redundant, {counted(placement.ep_size, 'rank')} of {counted(slots, 'slot')}"
    )
    say([line, target.line] if target.replaces else line, err=target.is_stdout, wrap=True)
