# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps weights`: the best split of each expert's tokens over its copies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from expert_maps import metrics
from expert_maps.cli.common import (
    AllowUnevenOption,
    FileArgument,
    JsonOption,
    bad_input,
    console,
    print_json,
    read_map,
)
from expert_maps.formats import read_load, write_weights
from expert_maps.formats.weights import check_output_name
from expert_maps.splitting import split_replicas


def weights(
    file: FileArgument,
    load: Annotated[Path, typer.Argument(metavar="LOAD", help="Tokens routed to each expert, as for plan.")],
    key: Annotated[str | None, typer.Option("--key", help="The array of the load file, as for plan.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=r"Where to write the weights, float64 \[layers, experts, copies], with the digest of the map; the name ends "
            "in .npz or .json.",
        ),
    ] = None,
    allow_uneven: AllowUnevenOption = False,
    json: JsonOption = False,
) -> None:
    """Split each expert's tokens over its copies so that the hottest rank is as cool as it can be.

    Even is what serving does without weights: copies take turns. The plugin serves with the file written here as its
    replica_weights_path, for this map and no other.
    """
    with bad_input():
        if output is not None:
            check_output_name(output)
        placement = read_map(file, allow_uneven=allow_uneven)
        trace = read_load(load, key)
        found = split_replicas(placement, trace)
        even = metrics.balancedness(placement, trace)
        if output is not None:
            write_weights(found, output)
    if json:
        print_json(
            {
                "num_layers": placement.num_layers,
                "balancedness_even": even.tolist(),
                "balancedness": found.balancedness.tolist(),
                "max_rank_load": found.max_rank_load.tolist(),
                "lower_bound": found.lower_bound.tolist(),
                "output": None if output is None else str(output),
            }
        )
        return
    table = Table(title="balancedness of copies that take turns, and of weights", title_justify="left")
    for title in ("layer", "even", "weighted", "max/mean even", "max/mean weighted"):
        table.add_column(title, justify="right")
    for layer, (was, now) in enumerate(zip(even, found.balancedness, strict=True)):
        table.add_row(str(layer), f"{was:.4f}", f"{now:.4f}", f"{1 / was:.3f}", f"{1 / now:.3f}")
    console.print(table)
    if output is not None:
        typer.echo(f"written: {output}")
