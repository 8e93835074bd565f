# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps simulate`: a trace replayed under settings of EPLB."""

from __future__ import annotations

from typing import Annotated

import typer

from expert_maps.cli.costs import CostOptions, price_of
from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.options import refuse_two_stdins
from expert_maps.cli.sweeping import RunOptions, SweepOptions


def simulate(
    loads: LoadsArgument,
    ep_size: Annotated[
        str, typer.Option("--ep-size", help="Expert-parallel ranks; several separated by commas.")
    ],
    redundant: Annotated[
        str,
        typer.Option(
            "--redundant", help="Redundant experts of a layer, over all ranks; several separated by commas."
        ),
    ],
    swept: SweepOptions = SweepOptions(),  # noqa: B008 - frozen
    how: RunOptions = RunOptions(),  # noqa: B008 - frozen
    costs: CostOptions = CostOptions(),  # noqa: B008 - frozen
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
) -> None:
    """Replay a trace, step by step, under EPLB with each combination of the options, and print one table.

    A placement that is used at a step is planned from steps before it. The first row of each number of ranks is the
    server without EPLB: the linear layout. Over steps is the ratio of the sums over steps and layers of the mean rank's
    tokens and the hottest one's; fewer tokens is by how much the hottest ranks carry less than without EPLB. Stall is
    how long the moves take at the bandwidth, in rounds in which a rank sends and receives one expert at most, layer
    after layer. Planner is measured in this run, on the CPU that it runs on.
    """
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.plotting import check_plot, write_plot
    from expert_maps.cli.simulated import print_runs, refuse_nothing, run_sweep, saved
    from expert_maps.cli.writing import check_output

    inputs = {"LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    read = {**inputs, "--resume": how.resume}
    target = check_output(how.output, read, endings=(".json", ".parquet"), json=how.json)
    check_output(how.resume, inputs, endings=(".jsonl",), name="--resume")
    drawn = check_plot(how.plot, inputs)
    settings = swept.settings(ep_size, redundant)
    loaded = inspect_loads(loads, said)
    trace, price = loaded.load, price_of(costs, loaded)
    runs = run_sweep(trace, settings, swept, costs, price, how)
    refuse_nothing(runs)
    if how.output is not None:
        target.write(saved(how.output, trace, runs, price))
    if drawn.path is not None:
        from expert_maps.plots_of_runs import plot_runs

        write_plot(drawn, lambda: plot_runs(runs))
    print_runs(trace, runs, price, target, json=how.json)
