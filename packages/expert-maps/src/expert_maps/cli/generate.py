# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps generate`: an initial placement by the name of its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expert_maps.cli.common import (
    AllowDuplicatesOption,
    JsonOption,
    OutputOption,
    bad_input,
    print_json,
)
from expert_maps.errors import LayoutError
from expert_maps.formats import vllm_ascend, write_placement
from expert_maps.layouts import LAYOUT_NAMES, generate_placement
from expert_maps.models import MODELS, model_counts


def generate(
    ep_size: Annotated[int, typer.Option("--ep-size", help="Expert-parallel ranks.")],
    experts: Annotated[int | None, typer.Option("--experts", help="Routed experts of a layer.")] = None,
    redundant: Annotated[
        int, typer.Option("--redundant", help="Redundant experts of a layer, over all ranks.")
    ] = 0,
    layers: Annotated[
        int | None, typer.Option("--layers", help="MoE layers; 1 if neither this nor --model is given.")
    ] = None,
    layout: Annotated[str, typer.Option("--layout", help=f"One of {', '.join(LAYOUT_NAMES)}.")] = "ring",
    shared: Annotated[
        int,
        typer.Option(
            "--shared", help="Shared experts to mix in: each rank gets one more slot for one of them."
        ),
    ] = 0,
    shared_on_every_rank: Annotated[
        bool,
        typer.Option(
            "--shared-on-every-rank", help="Give every rank all shared experts instead of one in turn."
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=f"Take --experts and --layers from a config.json, or one of {', '.join(MODELS)}.",
        ),
    ] = None,
    output: OutputOption = None,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Generate an initial placement, the same in every layer; without --output print the map itself."""
    with bad_input():
        if output is not None:
            vllm_ascend.check_output_name(output)
        if model is not None:
            counts = model_counts(model)
            experts = counts.num_experts if experts is None else experts
            layers = counts.num_layers if layers is None else layers
        if experts is None:
            msg = "the number of experts is missing; expected --experts or --model"
            raise LayoutError(msg)
        placement = generate_placement(
            layout,
            num_experts=experts,
            ep_size=ep_size,
            num_redundant_experts=redundant,
            num_layers=1 if layers is None else layers,
            num_shared_experts=shared,
            shared_on_every_rank=shared_on_every_rank,
            allow_duplicates=allow_duplicates,
        )
        if output is None and not json:
            typer.echo(vllm_ascend.dumps(placement), nl=False)
            return
        if output is not None:
            write_placement(
                placement,
                output,
                model=None if model is None else Path(model).name,
                num_shared_experts=shared,
                provenance={"command": "generate", "layout": layout},
            )
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
                "output": None if output is None else str(output),
            }
        )
        return
    slots = "/".join(map(str, sorted(set(placement.slots_per_rank.tolist()))))
    typer.echo(
        f"{output}: {layout}, {placement.num_layers} layers, {placement.num_logical_experts} experts, "
        f"{placement.num_redundant_experts} redundant, {placement.ep_size} ranks of {slots} slots"
    )
