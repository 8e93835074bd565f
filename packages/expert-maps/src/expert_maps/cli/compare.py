# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps compare`: policies and amounts of redundancy side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.options import (
    EpSizeOption,
    GroupsOption,
    Inputs,
    JsonOption,
    NodesOption,
    as_choice,
    as_numbers,
    refuse_two_stdins,
)
from expert_maps.cli.plotting import PlotOption
from expert_maps.errors import ExpertMapsError, LayoutError

if TYPE_CHECKING:
    from expert_maps._layers import LayerNames
    from expert_maps.cli.loading import Loaded
    from expert_maps.comparison import ComparisonRow

_PROPOSED = 3


def compare(
    loads: LoadsArgument,
    ep_size: EpSizeOption,
    policies: Annotated[
        str, typer.Option("--policies", help="Policies, separated by commas; names as for plan.")
    ] = "balanced,deepseek",
    redundant: Annotated[
        str | None,
        typer.Option(
            "--redundant",
            help="Redundant experts of a layer, several separated by commas. If not given: the least that divides, "
            "and one and two slots more on each rank.",
        ),
    ] = None,
    groups: GroupsOption = 1,
    plot: PlotOption = None,
    nodes: NodesOption = 1,
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    json: JsonOption = False,
) -> None:
    """Plan one load by several policies with several amounts of redundancy, and print one table.

    Worst is the lowest balancedness of a layer, and which layer has it. Over steps is what a load of several steps is
    planned for by the policy balanced; the others plan for the sum. Seconds are those of this run.
    """
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.plotting import check_plot, write_plot
    from expert_maps.cli.work import work
    from expert_maps.comparison import compare as compare_plans

    names = _policies(policies)
    inputs: Inputs = {"LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    drawn = check_plot(plot, inputs)
    loaded = inspect_loads(loads, said)
    trace = loaded.load
    copies = _copies(redundant, trace.num_experts, ep_size)
    rows = work(
        "comparing policies",
        lambda progress: compare_plans(
            trace,
            ep_size=ep_size,
            policies=names,
            redundant=copies,
            num_groups=groups,
            num_nodes=nodes,
            progress=progress,
        ),
    )
    if all(row.reason is not None for row in rows):
        msg = f"nothing to compare: {rows[0].reason}"
        raise LayoutError(msg)
    write_plot(drawn, lambda: _drawn(rows))
    _tell(rows, loaded, ep_size, json=json)


def _drawn(rows: list[ComparisonRow]) -> object:
    from expert_maps.plots_of_runs import plot_comparison

    return plot_comparison(rows)


def _policies(text: str) -> list[str]:
    from expert_maps.layouts import LAYOUT_NAMES
    from expert_maps.policies import POLICY_NAMES

    known = (*POLICY_NAMES, *LAYOUT_NAMES)
    names = [as_choice("--policies", name.strip(), known) for name in text.split(",") if name.strip()]
    if not names:
        msg = f"--policies is {text!r}; expected names separated by commas, like balanced,deepseek"
        raise ExpertMapsError(msg)
    return names


def _copies(text: str | None, num_experts: int, ep_size: int) -> list[int]:
    if text is None:
        return _proposed(num_experts, ep_size)
    copies = as_numbers("--redundant", text)
    if not copies:
        msg = f"--redundant is {text!r}; expected numbers separated by commas, like 0,32,64"
        raise ExpertMapsError(msg)
    return copies


def _proposed(num_experts: int, ep_size: int) -> list[int]:
    from expert_maps.counts import least_redundancy

    least = least_redundancy(num_experts, ep_size)
    most = num_experts * (ep_size - 1)
    return [copies for more in range(_PROPOSED) if (copies := least + more * ep_size) <= most] or [least]


def _tell(rows: list[ComparisonRow], loaded: Loaded, ep_size: int, *, json: bool) -> None:
    from expert_maps._words import counted
    from expert_maps.cli.output import print_json, say

    trace = loaded.load
    if json:
        print_json(
            {
                "num_layers": trace.num_layers,
                "layers": loaded.layers.listed,
                "num_logical_experts": trace.num_experts,
                "ep_size": ep_size,
                "num_steps": trace.num_steps,
                "rows": [asdict(row) for row in rows],
            }
        )
        return
    say(
        f"{counted(trace.num_layers, 'layer')} of {counted(trace.num_experts, 'expert')} on {counted(ep_size, 'rank')}, "
        f"{counted(trace.num_steps, 'step')} of load",
        wrap=True,
    )
    _print(rows, ep_size, loaded.layers)


def _print(rows: list[ComparisonRow], ep_size: int, names: LayerNames) -> None:
    from expert_maps.cli.output import say
    from expert_maps.cli.tables import print_table

    columns = [
        "policy",
        "redundant",
        "slots a rank",
        "balancedness",
        "worst",
        "its layer",
        "over steps",
        "seconds",
    ]
    planned = [row for row in rows if row.reason is None]
    cells = [
        [
            row.policy,
            str(row.num_redundant_experts),
            _slots(row.num_physical_experts, ep_size),
            f"{row.overall_balancedness:.4f}",
            f"{row.worst_balancedness:.4f}",
            names.short(row.worst_layer or 0),
            f"{row.over_steps:.4f}",
            f"{row.seconds:.3f}",
        ]
        for row in planned
    ]
    if planned:
        print_table("", columns, cells)
    say(
        [
            f"no plan by {row.policy} with {row.num_redundant_experts} redundant: {row.reason}"
            for row in rows
            if row.reason is not None
        ],
        wrap=True,
    )


def _slots(physical: int, ep_size: int) -> str:
    least, more = divmod(physical, ep_size)
    return f"{least + 1}/{least}" if more else str(least)
