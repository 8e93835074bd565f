# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of `simulate`, and what it and `advise` print and write of them."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from expert_maps._words import counted
from expert_maps.cli.output import as_count, as_size, print_json, say
from expert_maps.cli.work import work
from expert_maps.errors import LayoutError
from expert_maps.simulation import OFF, as_parquet, row_of, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from expert_maps.cli.costs import CostOptions
    from expert_maps.cli.sweeping import RunOptions, SweepOptions
    from expert_maps.cli.writing import Output
    from expert_maps.load import ExpertLoad
    from expert_maps.simulation import Costs, Run, Setting


def run_sweep(
    trace: ExpertLoad,
    settings: Sequence[Setting],
    swept: SweepOptions,
    costs: CostOptions,
    price: Costs,
    how: RunOptions,
) -> list[Run]:
    """Replay the trace under each setting, with a bar.

    Raises:
        ExpertMapsError: a setting or the trace does not fit.
    """
    return work(
        "simulating",
        lambda progress: simulate(
            trace,
            settings,
            window=swept.look_back,
            first=swept.first,
            costs=price,
            workers=costs.processes,
            on_ray=how.ray,
            resume=how.resume,
            progress=progress,
        ),
    )


def refuse_nothing(runs: Sequence[Run]) -> None:
    """Refuse a sweep of which only the servers without EPLB could be run.

    Raises:
        LayoutError: as said, with the first reason.
    """
    planned = [run for run in runs if run.setting.policy != OFF]
    if all(run.reason is not None for run in planned or runs):
        first = next((run.reason for run in planned or runs), None)
        msg = f"nothing to simulate: {first}"
        raise LayoutError(msg)


def saved(output: Path, trace: ExpertLoad, runs: Sequence[Run], price: Costs) -> str | bytes:
    """Return what `--output` writes: Parquet by the name's ending, else JSON.

    Raises:
        ExpertMapsError: pyarrow is not installed.
    """
    done = [run for run in runs if run.reason is None]
    return (
        as_parquet(done)
        if output.suffix == ".parquet"
        else json_text.dumps(document(trace, runs, price)) + "\n"
    )


def document(trace: ExpertLoad, runs: Sequence[Run], price: Costs) -> dict[str, Any]:
    """Return all runs as JSON: a row each, and lists by step. Sizes in bytes, times in seconds, tokens."""
    rows = [
        {
            **row_of(run),
            "balancedness": run.balancedness.tolist(),
            "hottest": run.hottest.tolist(),
            "stall_seconds_by_step": run.stall.tolist(),
            "planner_seconds_by_step": run.planner.tolist(),
        }
        for run in runs
    ]
    counts = {
        "num_layers": trace.num_layers,
        "num_logical_experts": trace.num_experts,
        "num_steps": trace.num_steps,
    }
    costs = {"expert_bytes": price.expert_bytes, "bandwidth_gb_per_s": price.bandwidth}
    return {**counts, **costs, "runs": rows}


def print_runs(trace: ExpertLoad, runs: Sequence[Run], price: Costs, target: Output, *, json: bool) -> None:
    """Print one JSON object, or a table and where the runs were written."""
    if json:
        print_json({**document(trace, runs, price), "output": target.name})
        return
    err = target.is_stdout
    say(
        f"{counted(trace.num_steps, 'step')} of {counted(trace.num_layers, 'layer')} of {trace.num_experts} experts; "
        f"experts of {as_size(price.expert_bytes)} at {price.bandwidth:g} GB/s",
        err=err,
        wrap=True,
    )
    print_table_of(runs, err=err)
    missing = [f"no run of {run.setting.name}: {run.reason}" for run in runs if run.reason is not None]
    say([*missing, *([target.line] if target.path is not None else [])], err=err, wrap=True)


def print_table_of(runs: Sequence[Run], *, err: bool = False) -> None:
    """Print a row a run."""
    from expert_maps.cli.tables import print_table

    off = {run.setting.ep_size: float(run.hottest.sum()) for run in runs if run.setting.policy == OFF}
    columns = [
        "ranks",
        "policy",
        "redundant",
        "interval",
        "max moves",
        "threshold",
        "over steps",
        "hottest tokens",
        "fewer tokens",
        "moves",
        "skipped",
        "moved",
        "rounds",
        "stall s",
        "planner s",
    ]
    rows = [_cells(run, off.get(run.setting.ep_size, 0.0)) for run in runs if run.reason is None]
    print_table("", columns, rows, err=err)


def _cells(run: Run, off: float) -> list[str]:
    said = asdict(run.setting)
    hottest = float(run.hottest.sum())
    if run.setting.policy == OFF:
        return [str(said["ep_size"]), OFF, *[""] * 4, f"{run.over_steps:.4f}", as_count(hottest), *[""] * 7]
    fewer = f"{1 - hottest / off:.1%}" if off > 0 else ""
    return [
        str(said["ep_size"]),
        said["policy"],
        str(said["num_redundant_experts"]),
        str(said["interval"] or "once"),
        "any" if said["max_moves"] is None else str(said["max_moves"]),
        f"{said['threshold']:g}",
        f"{run.over_steps:.4f}",
        as_count(hottest),
        fewer,
        str(run.rearrangements),
        str(run.skipped),
        as_size(run.moved_bytes),
        str(run.rounds),
        f"{run.stall.sum():.3f}",
        f"{run.planner.sum():.3f}",
    ]
