# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a static map costs and gains: throughput of vLLM's CPU build on one and two ranks, as ratios in one run.

python -m harness.bench.serving [--model CHECKPOINT] [--record FILE]

Without a checkpoint it makes one whose router is skewed (`harness.bench.skewed`), so that there is something to gain.

It needs vLLM, which nothing else of the benchmarks does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from expert_maps import evaluate, generate_placement, plan, read_load, write_placement
from harness.bench import skewed
from harness.bench.serving_arm import NEW_TOKENS, PROMPT_TOKENS, PROMPTS, Arm, ArmError, arm_environment
from harness.record import history
from harness.record.provenance import checkpoint_of, describe
from harness.record.schema import RunRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_maps import ExpertLoad

_REDUNDANT = 4
_NAME = (
    f"static map planned from recorded load, vLLM CPU build, {PROMPTS} prompts of {PROMPT_TOKENS} tokens, "
    f"{NEW_TOKENS} generated, float32, eager"
)
# How many times as fast as the second the first is: their rounds' seconds divided.
_COMPARED = {
    "one_rank_plugin": "one_rank_vllm",
    "one_rank_static_map": "one_rank_vllm",
    "two_ranks_static_map": "two_ranks_plugin",
    "two_ranks_no_copies": "two_ranks_plugin",
}
# What vLLM's idle workers spin for after a round, and what they warm up in.
_PAUSE_SECONDS, _WARM_UP = 1.5, 2


def _plan_maps(load: ExpertLoad, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    """Write the maps that are served, and return the files by arm, and balancedness on two ranks by arm."""
    experts, layers = load.num_experts, load.num_layers
    placements = {
        "one_rank_static_map": generate_placement(
            "linear", num_experts=experts, ep_size=1, num_layers=layers
        ),
        "two_ranks_static_map": plan(load, num_physical_experts=experts + _REDUNDANT, ep_size=2).placement,
        "two_ranks_no_copies": plan(load, num_physical_experts=experts, ep_size=2).placement,
        # What is served without a map.
        "two_ranks_plugin": generate_placement("linear", num_experts=experts, ep_size=2, num_layers=layers),
    }
    balance = {
        name: round(evaluate(placement, load).overall_balancedness, 3)
        for name, placement in placements.items()
        if placement.ep_size == 2  # noqa: PLR2004 - ranks
    }
    del placements["two_ranks_plugin"]
    files = {name: folder / f"{name}.json" for name in placements}
    for name, file in files.items():
        write_placement(placements[name], file)
    return files, balance


def measure(model: Path, rounds: int) -> dict[str, object]:
    """Let all arms take turns; medians, balancedness and ratios by name.

    Args:
        model: folder of the checkpoint.
        rounds: of each arm. A ratio is the median of the ratios of the rounds, whose quartiles are given with it.
    """
    with tempfile.TemporaryDirectory() as folder:
        two = {"tensor_parallel_size": 2}
        # Maps as users make them: planned from the load of this very work.
        record = Path(folder) / "load.npz"
        with Arm(model, two | _with({"record_path": str(record)})) as recording:
            recording.run_round()
        maps, balance = _plan_maps(read_load(record), Path(folder))
        options: dict[str, dict[str, Any]] = {
            "one_rank_vllm": {},
            "one_rank_plugin": _with({}),
            "two_ranks_plugin": two | _with({}),
        }
        for name, path in maps.items():
            options[name] = (two if name.startswith("two") else {}) | _with({"expert_map_path": str(path)})
        wall: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        # Only those that are compared with each other need to be there together.
        for reference in dict.fromkeys(_COMPARED.values()):
            together = [reference, *(name for name, other in _COMPARED.items() if other == reference)]
            walls, cpus = _take_turns(model, {name: options[name] for name in together}, rounds)
            wall |= walls
            cpu |= cpus
    tokens = PROMPTS * (PROMPT_TOKENS + NEW_TOKENS)
    result: dict[str, object] = {}
    for name in options:
        result[f"{name}_median_tokens_per_s"] = round(tokens / statistics.median(wall[name]), 1)
        result[f"{name}_median_cpu_s"] = round(statistics.median(cpu[name]), 2)
    for name, reference in _COMPARED.items():
        for unit, seconds in (("", wall), ("_cpu", cpu)):
            ratios = [other / own for own, other in zip(seconds[name], seconds[reference], strict=True)]
            key = f"{name}_to_{reference}{unit}_ratio"
            result[key] = round(statistics.median(ratios), 3)
            if rounds > 1:
                low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
                result[f"{key}_quartiles"] = [round(low, 3), round(high, 3)]
    return result | {f"{name}_balancedness": value for name, value in balance.items()}


def _take_turns(
    model: Path, options: Mapping[str, Mapping[str, Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Run all arms' rounds in turn, every second time backwards; return seconds and processor seconds by arm."""
    wall: dict[str, list[float]] = {name: [] for name in options}
    cpu: dict[str, list[float]] = {name: [] for name in options}
    with ExitStack() as stack:
        arms = []
        for name, given in options.items():
            arm = stack.enter_context(Arm(model, given))
            # One start at a time: each allocates as much as it finds room for.
            for _ in range(_WARM_UP):
                arm.run_round()
            arms.append((name, arm))
        for round_ in range(rounds):
            for name, arm in arms[:: -1 if round_ % 2 else 1]:
                time.sleep(_PAUSE_SECONDS)
                seconds, used = arm.run_round()
                wall[name].append(seconds)
                cpu[name].append(used)
    return wall, cpu


def _with(expert_maps: Mapping[str, Any]) -> dict[str, Any]:
    return {"additional_config": {"expert_maps": dict(expert_maps)}}


def main(
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="Folder of a small Mixture-of-Experts checkpoint; by default one with a skewed router.",
        ),
    ] = None,
    record: Annotated[Path | None, typer.Option("--record", help="Append the result to this file.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Timed rounds of each arm.", min=1)] = 15,
) -> None:
    """Time vLLM with and without the plugin and a static map."""
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            # The last part of its folder's name is what a record calls it.
            model = Path(folder) / "skewed"
            skewed.write_model(model)
        checkpoint = checkpoint_of(str(model))
        try:
            result = measure(model, rounds)
        except ArmError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
    table = Table(title=_NAME, title_justify="left")
    table.add_column("arm")
    table.add_column("median, tokens/s", justify="right")
    suffix = "_median_tokens_per_s"
    for name, value in result.items():
        if name.endswith(suffix):
            table.add_row(name.removesuffix(suffix).replace("_", " "), str(value))
    console = Console()
    console.print(table)
    for name, value in result.items():
        if name.endswith("_ratio"):
            quartiles = result.get(f"{name}_quartiles", "")
            console.print(
                f"{name.removesuffix('_ratio').replace('_', ' ')}: {value} times as fast {quartiles}"
            )
    if record is not None:
        settings = {"rounds": rounds, "redundant_experts_on_two_ranks": _REDUNDANT}
        provenance = describe(checkpoint=checkpoint, environment=arm_environment())
        history.append(
            record,
            RunRecord(
                kind="serving", name=_NAME, settings=settings, provenance=provenance, performance=result
            ),
        )
        typer.echo(f"appended to {record}")


if __name__ == "__main__":
    typer.run(main)
