# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps evaluate`: how a map carries a load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps._words import counted
from expert_maps.cli.aims import CountOptions
from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.mapping import FromOption, RanksOption
from expert_maps.cli.options import (
    AllowDuplicatesOption,
    AllowUnevenOption,
    Inputs,
    JsonOption,
    MapArgument,
    TableOption,
    refuse_two_stdins,
)
from expert_maps.cli.plotting import PlotOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from expert_maps._layers import LayerNames
    from expert_maps.evaluate import Evaluation

_HOTTEST = 3

_LayerOption = Annotated[
    int | None, typer.Option("--layer", help="Print every rank of this MoE layer, by row from 0.")
]


def evaluate(
    file: MapArgument,
    loads: LoadsArgument,
    layer: _LayerOption = None,
    source: FromOption = None,
    ep_size: RanksOption = None,
    of_batch: CountOptions = CountOptions(),  # noqa: B008 - frozen
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    plot: PlotOption = None,
    table: TableOption = False,
    allow_uneven: AllowUnevenOption = False,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Print how a map carries a load: balancedness, the hottest ranks and the hottest experts.

    Balancedness is mean / max rank load; 1 is perfect; over all layers it is the ratio of the sums. Over steps it is
    the ratio of the sums over steps, each step with its own hottest rank. An expert's tokens are split evenly over its
    copies. With --batch-tokens and --top-k, or --activated where each step of the load is a batch of decode, also the slots
    that a batch is expected to activate on each rank, whose weights the rank reads.
    """
    from expert_maps.cli.carrying import read_map_for
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.mapping import MapOptions
    from expert_maps.cli.output import print_json, say
    from expert_maps.cli.plan_report import title_of
    from expert_maps.cli.plotting import check_plot, draw_placement, write_plot
    from expert_maps.evaluate import evaluate as evaluate_placement
    from expert_maps.validation import as_index

    inputs: Inputs = {"MAP": file, "LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    drawn = check_plot(plot, inputs)
    loaded = inspect_loads(loads, said)
    trace = loaded.load
    of_map = MapOptions(
        source=source,
        ep_size=ep_size,
        experts=said.experts,
        allow_uneven=allow_uneven,
        allow_duplicates=allow_duplicates,
    )
    read, names = read_map_for(file, of_map, loaded)
    placement = read.placement
    found = evaluate_placement(placement, trace)
    chosen = None if layer is None else as_index("layer", layer, placement.num_layers)
    counts = of_batch.count(placement, trace)
    write_plot(drawn, lambda: draw_placement(placement, trace))
    if json:
        print_json(_document(found, names) | counts.document)
        return
    say(title_of(placement, trace, str(file)), wrap=True)
    if table:
        _print_layers(found, names)
    if chosen is not None:
        _print_ranks(found, chosen, names)
    say([*_lines(found, names), *counts.lines(names)], wrap=True)


def _document(found: Evaluation, names: LayerNames) -> dict[str, object]:
    import numpy as np

    placement, trace = found.placement, found.load
    document: dict[str, object] = {
        "num_layers": placement.num_layers,
        "layers": names.listed,
        "num_logical_experts": placement.num_logical_experts,
        # A number, or one for each layer where they differ.
        "num_redundant_experts": np.asarray(placement.num_redundant_experts).tolist(),
        "ep_size": placement.ep_size,
        "num_steps": trace.num_steps,
        "overall_balancedness": found.overall_balancedness,
        "balancedness_over_steps": found.over_steps,
        "balancedness": found.balancedness.tolist(),
        "balancedness_over_steps_per_layer": _over_steps(found).tolist(),
        "hottest_rank": found.rank_load.argmax(axis=1).tolist(),
        "max_rank_load": found.rank_load.max(axis=1).tolist(),
        "hottest_expert": trace.total.argmax(axis=1).tolist(),
        "rank_load": found.rank_load.tolist(),
        "digest": placement.digest,
    }
    return document


def _over_steps(found: Evaluation) -> NDArray[np.float64]:
    """Each layer's ratio of the sums over steps of mean and hottest rank, float64 [L]."""
    import numpy as np

    mean = found.load.total.sum(axis=1) / found.placement.ep_size
    peak = found.step_peaks.sum(axis=0)
    return np.divide(mean, peak, out=np.ones_like(mean), where=peak > 0)


def _lines(found: Evaluation, names: LayerNames) -> list[str]:
    from expert_maps.cli.plan_report import worst_layers

    lines = [f"balancedness: {found.overall_balancedness:.4f} (1 is perfect)"]
    if found.load.num_steps > 1:
        lines.append(f"balancedness over steps: {found.over_steps:.4f}")
    lines.append(f"hottest rank / mean: {1 / found.overall_balancedness:.3f}")
    return [*lines, *worst_layers(found.balancedness, names), *_hottest(found, names)]


def _hottest(found: Evaluation, names: LayerNames) -> list[str]:
    """The ranks and experts furthest above their layer's mean; none of a layer without tokens."""
    import numpy as np

    from expert_maps.cli.output import as_count

    lines = []
    for what, loads in (("rank", found.rank_load), ("expert", found.load.total)):
        mean = loads.mean(axis=1, keepdims=True)
        ratio = np.divide(loads, mean, out=np.zeros_like(loads), where=mean > 0)
        order = np.argsort(-ratio, axis=None, kind="stable")[:_HOTTEST]
        named = []
        for layer, index in zip(*np.unravel_index(order, loads.shape), strict=True):
            if ratio[layer, index] <= 0:
                continue
            copies = found.placement.replica_count[layer, index] if what == "expert" else 0
            tokens = f"{ratio[layer, index]:.3f} × mean, {counted(as_count(loads[layer, index]), 'token')}"
            more = f", {copies} copies" if copies > 1 else ""
            named.append(f"{index} in {names.one(int(layer))} ({tokens}{more})")
        lines.append(f"hottest {what}s: {', '.join(named) or 'none'}")
    return lines


def _print_layers(found: Evaluation, names: LayerNames) -> None:
    from expert_maps.cli.output import as_count
    from expert_maps.cli.tables import print_table

    loads, total = found.rank_load, found.load.total
    by_step = _over_steps(found)
    rows = [
        [
            *names.cells(layer),
            f"{value:.4f}",
            f"{by_step[layer]:.4f}",
            f"{1 / value:.3f}",
            str(loads[layer].argmax()),
            as_count(loads[layer].max()),
            str(total[layer].argmax()),
        ]
        for layer, value in enumerate(found.balancedness)
    ]
    columns = [
        *names.columns,
        "balancedness",
        "over steps",
        "max/mean",
        "hottest rank",
        "its tokens",
        "hottest expert",
    ]
    overall = found.overall_balancedness
    last = [*names.cells(None), f"{overall:.4f}", f"{found.over_steps:.4f}", f"{1 / overall:.3f}", "", "", ""]
    print_table("", columns, rows, total=last)


def _print_ranks(found: Evaluation, layer: int, names: LayerNames) -> None:
    import numpy as np

    from expert_maps.cli.output import as_count
    from expert_maps.cli.tables import print_table

    placement, loads = found.placement, found.rank_load[layer]
    share = found.load.total[layer] / placement.replica_count[layer]
    mean = float(loads.mean())
    rows = []
    for rank, tokens in enumerate(loads):
        experts = placement.local_experts(layer, rank)
        hottest = int(experts[np.argmax(share[experts])]) if len(experts) else None
        ratio = f"{tokens / mean:.3f}" if mean > 0 else "1.000"
        rows.append(
            [
                str(rank),
                str(len(experts)),
                as_count(float(tokens)),
                ratio,
                "none" if hottest is None else str(hottest),
                "0" if hottest is None else as_count(float(share[hottest])),
            ]
        )
    columns = ["rank", "slots", "tokens", "of mean", "hottest expert", "its tokens"]
    print_table(f"ranks of {names.one(layer)}", columns, rows)
