# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps weights`: the best split of each expert's tokens over its copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.mapping import FromOption, RanksOption
from expert_maps.cli.options import (
    AllowUnevenOption,
    Inputs,
    JsonOption,
    MapArgument,
    TableOption,
    refuse_two_stdins,
)

if TYPE_CHECKING:
    from expert_maps._layers import LayerNames
    from expert_maps.cli.writing import Output
    from expert_maps.evaluate import Evaluation
    from expert_maps.splitting import ReplicaWeights


def weights(
    file: MapArgument,
    loads: LoadsArgument,
    source: FromOption = None,
    ep_size: RanksOption = None,
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the weights, float64 [layers, experts, copies], with the digest of the map; the name ends in "
            ".npz or .json. - for standard output.",
        ),
    ] = None,
    table: TableOption = False,
    allow_uneven: AllowUnevenOption = False,
    json: JsonOption = False,
) -> None:
    """Split each expert's tokens over its copies so that the hottest rank is as cool as it can be.

    Even is what serving does without weights: copies take turns. The plugin serves with the file written here as its
    replica_weights_path, for this map and no other.
    """
    from expert_maps.cli.carrying import read_map_for
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.mapping import MapOptions, alike
    from expert_maps.cli.work import work
    from expert_maps.cli.writing import check_output
    from expert_maps.evaluate import evaluate
    from expert_maps.formats.weights import content_of
    from expert_maps.splitting import split_replicas

    inputs: Inputs = {"MAP": file, "LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    target = check_output(output, inputs, endings=(".npz", ".json"), json=json)
    loaded = inspect_loads(loads, said)
    trace = loaded.load
    of_map = MapOptions(source=source, ep_size=ep_size, experts=said.experts, allow_uneven=allow_uneven)
    read, names = read_map_for(file, of_map, loaded)
    placement = alike(read, file)
    even = evaluate(placement, trace)
    found = work("splitting tokens", lambda _: split_replicas(placement, trace))
    if target.path is not None:
        target.write(content_of(found, ".npz" if target.is_stdout else target.path.suffix))
    _print(even, found, target, names, table=table, json=json)


def _print(
    even: Evaluation, found: ReplicaWeights, target: Output, names: LayerNames, *, table: bool, json: bool
) -> None:
    from expert_maps.cli.output import print_json, say
    from expert_maps.cli.plan_report import title_of, worst_layers
    from expert_maps.cli.tables import print_table

    was, now = even.balancedness, found.balancedness
    peak = float(found.max_rank_load.sum())
    overall = float(found.rank_load.mean(axis=1).sum()) / peak if peak > 0 else 1.0
    if json:
        document = {
            "num_layers": found.placement.num_layers,
            "layers": names.listed,
            "balancedness_even": was.tolist(),
            "balancedness": now.tolist(),
            "overall_balancedness_even": even.overall_balancedness,
            "overall_balancedness": overall,
            "max_rank_load": found.max_rank_load.tolist(),
            "lower_bound": found.lower_bound.tolist(),
            "output": target.name,
            "replaced": target.replaces,
        }
        print_json(document)
        return
    err = target.is_stdout
    say(title_of(found.placement, even.load, "weights"), err=err, wrap=True)
    if table:
        rows = [
            [*names.cells(layer), f"{a:.4f}", f"{b:.4f}", f"{1 / a:.3f}", f"{1 / b:.3f}"]
            for layer, (a, b) in enumerate(zip(was, now, strict=True))
        ]
        a, b = even.overall_balancedness, overall
        total = [*names.cells(None), f"{a:.4f}", f"{b:.4f}", f"{1 / a:.3f}", f"{1 / b:.3f}"]
        columns = [*names.columns, "even", "weighted", "max/mean even", "max/mean weighted"]
        print_table("", columns, rows, total=total, err=err)
    even_now, weighted = even.overall_balancedness, overall
    lines = [
        f"balancedness: {even_now:.4f} where copies take turns, {weighted:.4f} weighted (1 is perfect)",
        f"hottest rank / mean: {1 / even_now:.3f} where copies take turns, {1 / weighted:.3f} weighted",
        *worst_layers(now, names),
        target.line,
    ]
    say(lines, err=err, wrap=True)
