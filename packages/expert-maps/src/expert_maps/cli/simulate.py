# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps simulate`: a trace replayed under settings of EPLB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from expert_maps.cli.costs import CostOptions, price_of
from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.options import (
    JsonOption,
    as_choice,
    as_max_moves,
    as_numbers,
    refuse_two_stdins,
)
from expert_maps.cli.plotting import PlotOption
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from expert_maps.simulation import Run

Value = TypeVar("Value")

PoliciesOption = Annotated[
    str,
    typer.Option(
        "--policies",
        help="Policies, separated by commas: balanced, deepseek, deepseek_hierarchical, deepseek_global, reference.",
    ),
]


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
    policies: PoliciesOption = "balanced",
    intervals: Annotated[
        str,
        typer.Option(
            "--intervals",
            help="Steps from one plan to the next; several separated by commas. 0 plans once, from the steps before "
            "--first, and keeps that.",
        ),
    ] = "0",
    max_moves: Annotated[
        str,
        typer.Option(
            "--max-moves",
            help="Slots of a layer that one plan may change, or any; several separated by commas. Only for balanced.",
        ),
    ] = "any",
    thresholds: Annotated[
        str,
        typer.Option(
            "--thresholds",
            help="Plan only when the window's balancedness is below this, 0 to 1; several separated by commas.",
        ),
    ] = "1",
    look_back: Annotated[
        int | None,
        typer.Option("--look-back", min=1, help="Steps that a plan is made from; the interval if not given."),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(
            "--first",
            min=1,
            help="Steps before the first plan. If not given: the interval, or half of the trace.",
        ),
    ] = None,
    costs: CostOptions = CostOptions(),  # noqa: B008 - frozen
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Run on Ray: the cluster that RAY_ADDRESS names, else one of --workers CPUs started here. Needs ray.",
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", help="Keep finished runs in this file, and take from it those that are there."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write all runs, step by step: a name in .json or .parquet (pyarrow)."
        ),
    ] = None,
    plot: PlotOption = None,
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    json: JsonOption = False,
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
    from expert_maps.cli.simulated import print_runs, refuse_nothing, saved
    from expert_maps.cli.work import work
    from expert_maps.cli.writing import check_output
    from expert_maps.simulation import simulate as simulate_runs
    from expert_maps.simulation import sweep

    inputs = {"LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    target = check_output(output, {**inputs, "--resume": resume}, endings=(".json", ".parquet"), json=json)
    check_output(resume, inputs, endings=(".jsonl",), name="--resume")
    drawn = check_plot(plot, inputs)
    settings = sweep(
        ep_sizes=_given("--ep-size", as_numbers("--ep-size", ep_size)),
        redundant=_given("--redundant", as_numbers("--redundant", redundant)),
        policies=as_policies(policies),
        intervals=_given("--intervals", as_numbers("--intervals", intervals)),
        max_moves=_moves(max_moves),
        thresholds=_given("--thresholds", _fractions(thresholds)),
    )
    loaded = inspect_loads(loads, said)
    trace = loaded.load
    price = price_of(costs, loaded)
    runs: list[Run] = work(
        "simulating",
        lambda progress: simulate_runs(
            trace,
            settings,
            window=look_back,
            first=first,
            costs=price,
            workers=costs.processes,
            on_ray=ray,
            resume=resume,
            progress=progress,
        ),
    )
    refuse_nothing(runs)
    if output is not None:
        target.write(saved(output, trace, runs, price))
    if drawn.path is not None:
        from expert_maps.plots_of_runs import plot_runs

        write_plot(drawn, lambda: plot_runs(runs))
    print_runs(trace, runs, price, target, json=json)


def _given(option: str, values: list[Value]) -> list[Value]:
    """Refuse an option of commas alone."""
    if not values:
        msg = f"{option} has no value; expected one or several separated by commas"
        raise ExpertMapsError(msg)
    return values


def as_policies(text: str) -> list[str]:
    """Return the policies that `--policies` names.

    Raises:
        ExpertMapsError: one is not known, or none is named.
    """
    from expert_maps.policies import EVERY_POLICY
    from expert_maps.simulation import OFF

    names = _given("--policies", _words(text))
    return [as_choice("--policies", name, (OFF, *EVERY_POLICY)) for name in names]


def _moves(text: str) -> list[int | None]:
    return [as_max_moves(word, None) for word in _given("--max-moves", _words(text))]


def _fractions(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError as error:
        msg = f"--thresholds is {text!r}; expected numbers from 0 to 1 separated by commas, like 0.9,1"
        raise ExpertMapsError(msg) from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
