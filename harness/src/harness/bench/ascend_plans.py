# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a rearrangement beside vllm-ascend is planned in: its own process' work beside ours, on the same load.

Timed is all between the load and what each rank is told to send, to receive and to serve: the plan, the expert maps and
log2phy. vllm-ascend's is the released class, imported on the emulated NPU; it plans on the CPU in any case.

python -m harness.bench.ascend_plans [--release 0.23.0] [--load FILE [--key NAME]] [--record FILE]
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from expert_maps import ExpertMapsError, Placement, generate_placement, moves, rank_load, read_load
from harness.record import history
from harness.record.provenance import describe
from harness.record.tables import Sheet, show
from vllm_ascend_moe import releases

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# DeepSeek-R1's MoE layers and experts on 32 ranks, with a copy a rank.
_LAYERS, _EXPERTS, _RANKS = 58, 256, 32
_TOKENS = 1_000_000  # a layer
_OURS, _THEIRS = 20, 3  # how often each is timed
_SECONDS = 600


def drawn(family: str) -> NDArray[np.int64]:
    """Return a load of a family, int64 [L, E]."""
    draw = np.random.default_rng(0)
    if family == "log-normal, sigma 1":
        shares = draw.lognormal(sigma=1.0, size=(_LAYERS, _EXPERTS))
    else:  # Zipf's law, the experts in any order
        shares = np.stack([draw.permutation(1 / np.arange(1, _EXPERTS + 1)) for _ in range(_LAYERS)])
    return np.asarray(_TOKENS * shares / shares.sum(axis=1, keepdims=True), dtype=np.int64)


def _by_slot(start: Placement, load: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens of each slot where copies share evenly, [L, R, slots of a rank]."""
    rows = start.physical_to_logical
    layers = np.arange(len(rows))[:, None]
    return (load / start.replica_count)[layers, rows].astype(np.int64).reshape(len(rows), start.ep_size, -1)


def _describe(start: Placement, rows: NDArray[Any], load: NDArray[np.int64]) -> dict[str, object]:
    """Return how good a plan is and what it moves."""
    plan = Placement(rows, start.ep_size, num_logical_experts=start.num_logical_experts)
    ranks = rank_load(plan, load)
    return {
        "peak_to_mean": round(float((ranks.max(axis=1) / ranks.mean(axis=1)).mean()), 4),
        "slots_fetched": int(moves(start, plan).fetched.sum()),
    }


def _ours(start: Placement, slots: NDArray[np.int64]) -> Callable[[], NDArray[Any]]:
    import torch

    from vllm_ascend_moe.backends.ascend.planning import Planner
    from vllm_ascend_moe.backends.one_plan import OnePlan
    from vllm_ascend_moe.backends.policy import make_policy
    from vllm_ascend_moe.core.gain import MoveRule

    load = torch.from_numpy(slots)

    def plan() -> NDArray[Any]:
        planner = Planner(
            OnePlan(make_policy(), MoveRule(min_gain=0.0), None),
            start,
            lambda: load,
            ep_rank=0,
            num_groups=1,
            num_nodes=1,
            tp_sizes=[1] * start.num_layers,
        )
        planner.put(1)
        planner.share()
        planner.get()
        return planner.placement.physical_to_logical

    return plan


def _theirs(start: Placement, slots: NDArray[np.int64], policy_type: int) -> Callable[[], NDArray[Any]]:
    import torch

    core = "vllm_ascend.eplb.core"
    worker_class = importlib.import_module(f"{core}.eplb_worker").EplbWorker
    make = importlib.import_module(f"{core}.policy.policy_factory").PolicyFactory.generate_policy
    maps, load = torch.from_numpy(start.global_expert_map().astype(np.int64)), torch.from_numpy(slots)

    def plan() -> NDArray[Any]:
        # It would ask a group of processes for its rank.
        worker = object.__new__(worker_class)
        vars(worker).update(
            policy_type=policy_type,
            policy=make(policy_type),
            shared_dict={"expert_maps": maps, "moe_load": load},
            old_expert_maps=None,
            enable_d2d=True,
            tp_size=1,
            rank_id=0,
            multi_stage=False,
        )
        worker.do_update()
        found = worker.global2local(worker.old_expert_maps, worker.num_local_experts)
        return np.asarray(found.reshape(start.num_layers, -1).numpy())

    return plan


def _time(plan: Callable[[], NDArray[Any]], times: int) -> tuple[float, NDArray[Any]]:
    """Return the median milliseconds, the first left out, and what was planned."""
    rows = [plan()]
    seconds = timeit.repeat(lambda: rows.append(plan()), number=1, repeat=times)
    return 1000 * statistics.median(seconds), rows[-1]


def compare(load: NDArray[np.int64], policy_type: int) -> dict[str, object]:
    """Plan a load both ways, in an environment in which vllm-ascend can be imported."""
    layers, experts = load.shape
    redundant = _RANKS - experts % _RANKS if experts % _RANKS else _RANKS
    start = generate_placement(
        "ring", num_experts=experts, ep_size=_RANKS, num_layers=layers, num_redundant_experts=redundant
    )
    slots = _by_slot(start, load)
    found: dict[str, object] = {
        "layers": layers,
        "experts": experts,
        "slots": experts + redundant,
        "ranks": _RANKS,
    }
    found["at_the_start"] = _describe(start, start.physical_to_logical, load)
    for name, plan, times in (
        ("expert-maps", _ours(start, slots), _OURS),
        (f"vllm-ascend's policy {policy_type}", _theirs(start, slots, policy_type), _THEIRS),
    ):
        milliseconds, rows = _time(plan, times)
        found[name] = {"median_ms": round(milliseconds, 2), **_describe(start, rows, load)}
    return found


def _in_release(release: releases.Release, load: NDArray[np.int64]) -> dict[str, object]:
    """Compare in a process that finds the release and the emulated NPU."""
    from harness.ascend import engine
    from harness.ascend.stage import stage

    staged = stage(release)
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "load.npy", Path(folder) / "answer.json"
        np.save(given, load)
        command = [sys.executable, "-m", "harness.bench.ascend_plans", "--release", release.vllm_ascend]
        done = subprocess.run(  # noqa: S603 - this interpreter
            [*command, "--given", str(given), "--answer", str(answer)],
            env={**os.environ, **engine.environment(staged, "A3", Path(folder), plugin=False)},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if not answer.exists():
            typer.echo(done.stderr[-4000:], err=True)
            raise typer.Exit(1)
        found: dict[str, object] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def main(
    release: Annotated[
        str, typer.Option("--release", help="Of vllm-ascend, one that the plugin knows.")
    ] = "0.23.0",
    load: Annotated[
        Path | None, typer.Option("--load", help="A recorded load to plan beside the drawn ones.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Which array of the recorded load.")] = None,
    record: Annotated[Path | None, typer.Option("--record", help="Append the result to this file.")] = None,
    given: Annotated[Path | None, typer.Option("--given", hidden=True)] = None,
    answer: Annotated[Path | None, typer.Option("--answer", hidden=True)] = None,
) -> None:
    """Time plans of a rearrangement: expert-maps' and vllm-ascend's own."""
    known = releases.find(release)
    if known is None:
        names = ", ".join(one.vllm_ascend for one in releases.RELEASES)
        typer.echo(f"error: --release is {release!r}; expected one of {names}", err=True)
        raise typer.Exit(2)
    if given is not None and answer is not None:
        # The policy that the release itself takes where it may put several copies on a rank.
        answer.write_text(json.dumps(compare(np.load(given), 2)), encoding="utf-8")
        return
    loads = {family: drawn(family) for family in ("log-normal, sigma 1", "Zipf")}
    if load is not None:
        try:
            loads["recorded"] = read_load(load, key=key).total.astype(np.int64)
        except ExpertMapsError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
    results = {name: _in_release(known, counts) for name, counts in loads.items()}
    figures = ("median_ms", "peak_to_mean", "slots_fetched")
    rows = [
        [f"{name}: {who.replace('_', ' ')}", *(str(told.get(figure, "")) for figure in figures)]
        for name, result in results.items()
        for who, told in result.items()
        if isinstance(told, dict)
    ]
    columns = ["load: planned by", "ms, median", "peak / mean", "slots fetched"]
    show(Sheet("a rearrangement, from the load to every rank's task", "", columns, rows))
    name, provenance = (
        "plans of a rearrangement beside vllm-ascend, on the CPU",
        describe(extra={"vllm_ascend": release}),
    )
    history.keep(record, "ascend_plans", name, {"loads": results}, {"release": release}, provenance)


if __name__ == "__main__":
    typer.run(main)
