# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps plan`: a placement balanced for a recorded load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.table import Table

from expert_maps import metrics
from expert_maps.cli.common import (
    AllowDuplicatesOption,
    JsonOption,
    OutputOption,
    bad_input,
    console,
    print_json,
    progress_bar,
)
from expert_maps.formats import read_load, vllm_ascend, write_placement
from expert_maps.layouts import generate_placement
from expert_maps.planning import plan as plan_placement
from expert_maps.policies import POLICY_NAMES

if TYPE_CHECKING:
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement
    from expert_maps.planning import PlanResult


def plan(
    load: Annotated[
        Path,
        typer.Argument(
            metavar="LOAD",
            help=r"Tokens routed to each expert, \[layers, experts] or \[steps, layers, experts]: "
            ".npy, .npz, .json or .csv.",
        ),
    ],
    physical: Annotated[
        int, typer.Option("--physical", help="Physical experts (slots) of a layer, over all ranks.")
    ],
    ep_size: Annotated[int, typer.Option("--ep-size", help="Expert-parallel ranks.")],
    groups: Annotated[int, typer.Option("--groups", help="The router's expert groups.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", help="Servers that the ranks are spread over.")] = 1,
    policy: Annotated[str, typer.Option("--policy", help=f"One of {', '.join(POLICY_NAMES)}.")] = "deepseek",
    key: Annotated[
        str | None,
        typer.Option(
            "--key", help="The array in an .npz file or the key in a JSON object; all arrays if not given."
        ),
    ] = None,
    output: OutputOption = None,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Plan which experts get copies and where they sit, and print balancedness before and after.

    Before is the linear layout without redundant experts. Balancedness is mean / max rank load; 1 is
    perfect. The total is the ratio of the sums over layers, as vLLM logs it.
    """
    with bad_input():
        if output is not None:
            vllm_ascend.check_output_name(output)
        trace = read_load(load, key)
        with progress_bar("planning layers") as progress:
            result = plan_placement(
                trace,
                num_physical_experts=physical,
                ep_size=ep_size,
                policy=policy,
                num_groups=groups,
                num_nodes=nodes,
                allow_duplicates=allow_duplicates,
                progress=progress,
            )
        if not trace.total.any():
            typer.echo(f"warning: {load}: every count is 0, there is nothing to balance", err=True)
        before = generate_placement(
            "linear", num_experts=trace.num_experts, ep_size=ep_size, num_layers=trace.num_layers
        )
        if output is not None:
            write_placement(result.placement, output)
    if json:
        print_json(_as_document(trace, before, result, output))
    else:
        _print_table(trace, before, result, output)


def _as_document(
    trace: ExpertLoad, before: Placement, result: PlanResult, output: Path | None
) -> dict[str, object]:
    placement = result.placement
    return {
        "policy": result.policy,
        "num_layers": placement.num_layers,
        "num_logical_experts": placement.num_logical_experts,
        "num_redundant_experts": placement.num_redundant_experts,
        "ep_size": placement.ep_size,
        "balancedness_before": metrics.balancedness(before, trace).tolist(),
        "balancedness": result.balancedness.tolist(),
        "overall_balancedness_before": metrics.overall_balancedness(before, trace),
        "overall_balancedness": metrics.overall_balancedness(placement, trace),
        "digest": placement.digest,
        "output": None if output is None else str(output),
    }


def _print_table(trace: ExpertLoad, before: Placement, result: PlanResult, output: Path | None) -> None:
    placement = result.placement
    table = Table(
        title=f"{result.policy}: {placement.num_logical_experts} experts "
        f"+ {placement.num_redundant_experts} redundant on {placement.ep_size} ranks, "
        f"{trace.num_steps} step{'s' * (trace.num_steps > 1)} of load",
        title_justify="left",
    )
    for title in ("layer", "before", "after", "max/mean before", "max/mean after", "most copies"):
        table.add_column(title, justify="right")
    old = metrics.balancedness(before, trace)
    copies = placement.replica_count.max(axis=1)
    for layer, (was, now) in enumerate(zip(old, result.balancedness, strict=True)):
        table.add_row(
            str(layer), f"{was:.4f}", f"{now:.4f}", f"{1 / was:.3f}", f"{1 / now:.3f}", str(copies[layer])
        )
    was = metrics.overall_balancedness(before, trace)
    now = metrics.overall_balancedness(placement, trace)
    table.add_section()
    table.add_row(
        "total", f"{was:.4f}", f"{now:.4f}", f"{1 / was:.3f}", f"{1 / now:.3f}", str(np.max(copies))
    )
    console.print(table)
    if output is not None:
        typer.echo(f"written: {output}")
