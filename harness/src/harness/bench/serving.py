# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a static map costs and gains: throughput of vLLM's CPU build on one and two ranks, as ratios in one run.

python -m harness.bench.serving [--model CHECKPOINT] [--record FILE]

Without a checkpoint it makes one whose router is skewed (`harness.bench.skewed`), so that there is something to gain.

It needs vLLM, which nothing else of the benchmarks does.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from expert_maps import evaluate, generate_placement, plan, read_load, write_placement
from expert_maps.files import write_text
from harness.bench import skewed
from harness.record import history
from harness.record.provenance import checkpoint_of, describe
from harness.record.schema import RunRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_maps import ExpertLoad

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 64, 64, 64
_REDUNDANT = 4
_NAME = (
    f"static map planned from recorded load, vLLM CPU build, {_PROMPTS} prompts of {_PROMPT_TOKENS} tokens, "
    f"{_NEW_TOKENS} generated, float32, eager"
)
# How many times as fast as the second the first is.
_COMPARED = {
    "one_rank_plugin": "one_rank_vllm",
    "one_rank_static_map": "one_rank_vllm",
    "two_ranks_static_map": "two_ranks_plugin",
    "two_ranks_no_copies": "two_ranks_plugin",
}
_START_SECONDS = 300
# Two ranks on a machine with few cores and one NUMA node.
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def run_arm(model: str, rounds: int, options: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Generate with vLLM in this process; return each round's seconds, and CPU seconds of all processes. The first warms up."""
    import psutil  # type: ignore[import-untyped] # it comes with vLLM
    from vllm import LLM, SamplingParams

    def cpu_seconds() -> float:
        this = psutil.Process()
        times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
        return float(sum(time_.user + time_.system for time_ in times))

    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2 * (_PROMPT_TOKENS + _NEW_TOKENS),
        enable_prefix_caching=False,
        seed=0,
        # Prompts are ids, and so are answers.
        skip_tokenizer_init=True,
        **options,
    )
    draw = random.Random(0)  # noqa: S311 - a benchmark's data
    prompts = [
        {"prompt_token_ids": [draw.randrange(8, 256) for _ in range(_PROMPT_TOKENS)]} for _ in range(_PROMPTS)
    ]
    sampling = SamplingParams(temperature=0, max_tokens=_NEW_TOKENS, ignore_eos=True, detokenize=False)
    seconds = []
    for _ in range(rounds + 1):
        start, used = time.perf_counter(), cpu_seconds()
        llm.generate(prompts, sampling, use_tqdm=False)
        seconds.append((time.perf_counter() - start, cpu_seconds() - used))
    return seconds[1:]


def _arm_environment() -> dict[str, str]:
    """Return the variables of an arm's process: this one's, with none of vLLM's but those that are set here."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
        **_ENVIRONMENT,
    }


def _time_arm(model: Path, rounds: int, options: Mapping[str, Any]) -> list[tuple[float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "harness.bench.serving", "--model", str(model)]
        command += ["--rounds", str(rounds), "--arm", json.dumps(options), "--answer", str(answer)]
        log = Path(folder) / "log.txt"
        with log.open("w", encoding="utf-8") as stream:
            subprocess.run(  # noqa: S603 - this interpreter
                command,
                env=_arm_environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=_START_SECONDS,
                check=False,
            )
        if not answer.exists():
            typer.echo(log.read_text(encoding="utf-8", errors="replace")[-4000:], err=True)
            raise typer.Exit(1)
        return [(wall, cpu) for wall, cpu in json.loads(answer.read_text(encoding="utf-8"))]


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


def measure(model: Path, rounds: int, repeats: int) -> dict[str, object]:
    """Time all arms in turn, several times over; medians, balancedness and ratios by name.

    Args:
        model: folder of the checkpoint.
        rounds: timed rounds of a process.
        repeats: processes of each arm.
    """
    with tempfile.TemporaryDirectory() as folder:
        two = {"tensor_parallel_size": 2}
        # Maps as users make them: planned from the load of this very work.
        record = Path(folder) / "load.npz"
        _time_arm(model, 1, two | _with({"record_path": str(record)}))
        load = read_load(record)
        maps, balance = _plan_maps(load, Path(folder))
        arms: dict[str, dict[str, Any]] = {
            "one_rank_vllm": {},
            "one_rank_plugin": _with({}),
            "two_ranks_plugin": two | _with({}),
        }
        for name, path in maps.items():
            arms[name] = (two if name.startswith("two") else {}) | _with({"expert_map_path": str(path)})
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for _ in range(repeats):
            for name, options in arms.items():
                times[name] += _time_arm(model, rounds, options)
    tokens = _PROMPTS * (_PROMPT_TOKENS + _NEW_TOKENS)
    wall = {name: statistics.median(seconds for seconds, _ in found) for name, found in times.items()}
    used = {name: statistics.median(cpu for _, cpu in found) for name, found in times.items()}
    ratios: dict[str, float] = {}
    for name, reference in _COMPARED.items():
        ratios[f"{name}_to_{reference}_ratio"] = round(wall[reference] / wall[name], 3)
        ratios[f"{name}_to_{reference}_cpu_ratio"] = round(used[reference] / used[name], 3)
    return {
        **{f"{name}_median_tokens_per_s": round(tokens / seconds, 1) for name, seconds in wall.items()},
        **{f"{name}_median_cpu_s": round(seconds, 2) for name, seconds in used.items()},
        **ratios,
        **{f"{name}_balancedness": value for name, value in balance.items()},
    }


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
    rounds: Annotated[int, typer.Option("--rounds", help="Timed rounds of a process.", min=1)] = 5,
    repeats: Annotated[int, typer.Option("--repeats", help="Processes of each arm.", min=1)] = 3,
    arm: Annotated[str | None, typer.Option("--arm", hidden=True)] = None,
    answer: Annotated[Path | None, typer.Option("--answer", hidden=True)] = None,
) -> None:
    """Time vLLM with and without the plugin and a static map."""
    if arm is not None and answer is not None:
        write_text(answer, json.dumps(run_arm(str(model), rounds, json.loads(arm))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            # The last part of its folder's name is what a record calls it.
            model = Path(folder) / "skewed"
            skewed.write_model(model)
        checkpoint = checkpoint_of(str(model))
        result = measure(model, rounds, repeats)
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
            console.print(f"{name.removesuffix('_ratio').replace('_', ' ')}: {value} times as fast")
    if record is not None:
        settings = {"rounds": rounds, "repeats": repeats, "redundant_experts_on_two_ranks": _REDUNDANT}
        provenance = describe(checkpoint=checkpoint, environment=_arm_environment())
        history.append(
            record,
            RunRecord(
                kind="serving", name=_NAME, settings=settings, provenance=provenance, performance=result
            ),
        )
        typer.echo(f"appended to {record}")


if __name__ == "__main__":
    typer.run(main)
