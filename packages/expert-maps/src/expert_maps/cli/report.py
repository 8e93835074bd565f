# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `plan` and `rescale` print of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import typer
from rich.table import Table

from expert_maps import metrics
from expert_maps.cli.common import console, print_json
from expert_maps.layouts import generate_placement

if TYPE_CHECKING:
    from pathlib import Path

    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement
    from expert_maps.planning import PlanResult


def linear_layout(trace: ExpertLoad, ep_size: int) -> Placement:
    """Return the layout without redundant experts, which a plan is compared with where none is in use."""
    return generate_placement(
        "linear", num_experts=trace.num_experts, ep_size=ep_size, num_layers=trace.num_layers
    )


def print_result(
    trace: ExpertLoad,
    before: Placement,
    result: PlanResult,
    output: Path | None,
    moved_bytes: int | None,
    *,
    as_json: bool,
) -> None:
    """Print a plan beside the placement before it: as a table, or as one JSON object."""
    if as_json:
        print_json(_document(trace, before, result, output, moved_bytes))
    else:
        _print_table(trace, before, result, output, moved_bytes)


def warn_of_mended(result: PlanResult, trace: ExpertLoad, current: Placement | None = None) -> None:
    """Say where the map in use breaks a rule that the plan keeps, for which a rank may become hotter than before.

    Args:
        result: the plan.
        trace: what was planned for.
        current: the map in use, where it is on as many ranks as the plan.
    """
    layers = np.nonzero(result.mended)[0]
    if not layers.size:
        return
    text = (
        f"warning: the map in use breaks a rule that the plan keeps (no expert twice on a rank, groups on nodes) in "
        f"{layers.size} of {result.placement.num_layers} layers, the first of them {layers[0]}; they are put right"
    )
    if current is not None:
        was = metrics.rank_load(current, trace).max(axis=1)
        hotter = layers[(result.max_rank_load > was * (1 + 1e-9))[layers]]
        text += f", and the hottest rank carries more than before in {hotter.size} of them"
    typer.echo(text, err=True)


def _document(
    trace: ExpertLoad, before: Placement, result: PlanResult, output: Path | None, moved_bytes: int | None
) -> dict[str, object]:
    """Return what `--json` prints: plain numbers and lists, one entry a layer."""
    placement = result.placement
    document: dict[str, object] = {
        "policy": result.policy,
        "num_layers": placement.num_layers,
        "num_logical_experts": placement.num_logical_experts,
        "num_redundant_experts": placement.num_redundant_experts,
        "ep_size": placement.ep_size,
        "balancedness_before": metrics.balancedness(before, trace).tolist(),
        "balancedness": result.balancedness.tolist(),
        "overall_balancedness_before": metrics.overall_balancedness(before, trace),
        "overall_balancedness": metrics.overall_balancedness(placement, trace),
        "max_rank_load": result.max_rank_load.tolist(),
        "lower_bound": result.lower_bound.tolist(),
        "gap": result.gap.tolist(),
        "digest": placement.digest,
        "output": None if output is None else str(output),
    }
    if trace.num_steps > 1:
        document["balancedness_over_steps_before"] = _over_steps(before, trace)
        document["balancedness_over_steps"] = _over_steps(placement, trace)
    if result.moves is not None:
        document["mended_layers"] = np.nonzero(result.mended)[0].tolist()
        document["changed_per_layer"] = result.moves.changed.sum(axis=1).tolist()
        document["fetched_per_layer"] = result.moves.fetched.sum(axis=1).tolist()
        document["fetched_bytes"] = moved_bytes
    return document


def _print_table(
    trace: ExpertLoad, before: Placement, result: PlanResult, output: Path | None, moved_bytes: int | None
) -> None:
    """Print a line for each layer, and what holds for all of them."""
    placement = result.placement
    steps = f"{trace.num_steps} step{'s' * (trace.num_steps > 1)} of load"
    table = Table(
        title=f"{result.policy}: {placement.num_logical_experts} experts "
        f"+ {placement.num_redundant_experts} redundant on {placement.ep_size} ranks, {steps}",
        title_justify="left",
    )
    columns = ["layer", "before", "after", "max/mean before", "max/mean after", "gap", "most copies"]
    # With several steps it is not the sum that is planned for, and its gap would mislead.
    with_gap = result.policy == "balanced" and trace.num_steps == 1
    if not with_gap:
        columns.remove("gap")
    for title in (*columns, *(["moved slots"] * (result.moves is not None))):
        table.add_column(title, justify="right")
    old = metrics.balancedness(before, trace)
    copies = placement.replica_count.max(axis=1)
    for layer, (was, now) in enumerate(zip(old, result.balancedness, strict=True)):
        cells = [str(layer), f"{was:.4f}", f"{now:.4f}", f"{1 / was:.3f}", f"{1 / now:.3f}"]
        cells += [f"{result.gap[layer]:.3%}"] * with_gap + [str(copies[layer])]
        cells += [] if result.moves is None else [str(result.moves.changed[layer].sum())]
        table.add_row(*cells)
    table.add_section()
    was, now = (metrics.overall_balancedness(each, trace) for each in (before, placement))
    cells = ["total", f"{was:.4f}", f"{now:.4f}", f"{1 / was:.3f}", f"{1 / now:.3f}"]
    cells += [f"{_overall_gap(result):.3%}"] * with_gap + [str(np.max(copies))]
    cells += [] if result.moves is None else [str(result.moves.changed.sum())]
    table.add_row(*cells)
    console.print(table)
    _print_rest(trace, before, result, output, moved_bytes)


def _print_rest(
    trace: ExpertLoad, before: Placement, result: PlanResult, output: Path | None, moved_bytes: int | None
) -> None:
    if trace.num_steps > 1:
        was, now = (_over_steps(each, trace) for each in (before, result.placement))
        typer.echo(f"balancedness over steps: {was:.4f} before, {now:.4f} after")
    if result.moves is not None:
        changed, fetched = result.moves.changed, result.moves.fetched
        typer.echo(
            f"{int(changed.sum())} of {changed.size} slots change ({changed.mean():.1%}); "
            f"{int(fetched.sum())} are fetched from another rank"
            + (f", {moved_bytes:,} bytes" if moved_bytes is not None else "")
        )
    if output is not None:
        typer.echo(f"written: {output}")


def _overall_gap(result: PlanResult) -> float:
    bound = float(result.lower_bound.sum())
    return max(float(result.max_rank_load.sum()) / bound - 1, 0.0) if bound > 0 else 0.0


def _over_steps(placement: Placement, trace: ExpertLoad) -> float:
    """The ratio of the sums, over steps and layers, of mean and hottest rank."""
    peak = float(metrics.step_peaks(placement, trace).sum())
    return float(trace.total.sum()) / placement.ep_size / peak if peak > 0 else 1.0
