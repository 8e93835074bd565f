# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a planned map gains where experts are skewed, measured beside what `expert-maps advise` predicted for it.

python -m harness.bench.gain [--rounds N] [--record FILE]

Two data-parallel ranks of vLLM's CPU build, a core each, serve long prompts with a model whose hot experts all lie on
rank 0 without a map. In this order: the load of some prompts is recorded; the server without a map is timed, which gives
the two numbers that fit the advice's time model; the advice is asked, and maps are planned from the first half of the
record; only then are servers with these maps started, and all take turns on prompts that were never recorded.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from expert_maps import ExpertLoad, plan, read_load, write_placement
from expert_maps.advice import advise
from expert_maps.advice_model import TimeModel
from expert_maps.advice_rules import Served
from expert_maps.simulation import Costs
from harness.bench import skewed
from harness.bench.gain_ranks import PROMPT_TOKENS, Ranks
from harness.bench.serving_arm import ArmError, arm_environment
from harness.record import history
from harness.record.provenance import checkpoint_of, describe
from harness.record.schema import RunRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.advice import Advice
    from harness.bench.gain_ranks import Round

RANKS = 2
SHAPE = skewed.Shape(layers=2, hidden=512, inner=2048, heads=2, experts=16, top_k=1, half=2.0, first=1.0)
# Prompts of a rank: in the record, of which a step has one; and in a round.
TRACE_PROMPTS, PROMPTS = 48, 6
# Rounds that fit the time model, and those before that are not counted.
_CALIBRATING, _WARM_UP = 8, 1
# The servers that take turns, by the redundant experts of their maps; None for none.
ARMS: dict[str, int | None] = {"off": None, "map": 0, "map_with_copies": 2}
# Of prompts: what is recorded, what fits the model, and from where on arms are compared.
_RECORDED, _FITTING, _COMPARED = 1, 1000, 2000
_RESAMPLES = 5000
NAME = (
    f"planned maps and the advice's prediction, vLLM CPU build, {RANKS} data-parallel ranks, "
    f"prompts of {PROMPT_TOKENS} tokens, float32, eager"
)


def measure(model: Path, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Predict, then measure.

    Args:
        model: folder of the checkpoint.
        rounds: of each arm.

    Returns:
        what shows that the maps were served, and how fast they were.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        record = folder / "load.npz"
        with Ranks(model, {"record_path": str(record)}, RANKS) as recording:
            recording.run_round(_RECORDED, TRACE_PROMPTS)
        trace = read_load(record)
        arms = {"off": stack.enter_context(Ranks(model, {}, RANKS))}
        fitting = _rounds(arms["off"], _FITTING, _CALIBRATING)
        fitted = fit(fitting)
        advice = {
            arm: advice_for(trace, [copies], fitted) for arm, copies in ARMS.items() if copies is not None
        }
        free = advice_for(trace, [copies for copies in ARMS.values() if copies is not None], fitted)
        half = ExpertLoad(trace.counts[: trace.num_steps // 2])
        digests = {}
        for arm, copies in ARMS.items():
            if copies is None:
                continue
            placement = plan(half, ep_size=RANKS, num_redundant_experts=copies).placement
            digests[arm] = placement.digest
            path = folder / f"{arm}.json"
            write_placement(placement, path)
            arms[arm] = stack.enter_context(Ranks(model, {"expert_map_path": str(path)}, RANKS))
            _rounds(arms[arm], 0, 0)
        taken = take_turns(arms, rounds)
    served = {arm: sorted({digest for one in of for digest in one.digests}) for arm, of in taken.items()}
    for arm, digest in digests.items():
        if served[arm] != [digest]:
            msg = f"{arm} was served with {served[arm]}; expected the planned map {digest} alone"
            raise ArmError(msg)
    proof = {
        "trace_steps": trace.num_steps,
        "trace_tokens": int(trace.total.sum()),
        "planned_digests": digests,
        "served_digests": served,
    }
    return proof, result_of(taken, fitted, advice, free)


def _rounds(ranks: Ranks, seed: int, rounds: int) -> list[Round]:
    """Warm up, then run."""
    for index in range(_WARM_UP):
        ranks.run_round(index, PROMPTS)
    return [ranks.run_round(seed + index, PROMPTS) for index in range(rounds)]


def take_turns(arms: dict[str, Ranks], rounds: int) -> dict[str, list[Round]]:
    """Let all arms serve the same prompts in turn, every second time backwards."""
    found: dict[str, list[Round]] = {arm: [] for arm in arms}
    for index in range(rounds):
        for arm, ranks in list(arms.items())[:: -1 if index % 2 else 1]:
            found[arm].append(ranks.run_round(_COMPARED + index, PROMPTS))
    return found


def fit(rounds: Sequence[Round]) -> TimeModel:
    """Return the time model of the server that ran these rounds: medians of what a step takes, and its experts."""
    return TimeModel(
        statistics.median(1000 * one.seconds / PROMPTS for one in rounds),
        statistics.median(1000 * one.expert_seconds / PROMPTS for one in rounds),
        is_measured=True,
    )


def advice_for(trace: ExpertLoad, redundant: list[int], fitted: TimeModel) -> Advice:
    """Ask for advice on a map that is planned once."""
    return advise(
        trace,
        ep_size=RANKS,
        redundant=redundant,
        intervals=[0],
        time_model=fitted,
        costs=Costs(expert_bytes=3 * SHAPE.hidden * SHAPE.inner * 4),
        served=Served(phase="prefill", prompt_tokens=PROMPT_TOKENS),
    )


def result_of(
    taken: dict[str, list[Round]], fitted: TimeModel, advice: dict[str, Advice], free: Advice
) -> dict[str, Any]:
    """Put what was measured beside what was predicted.

    Args:
        taken: the rounds of each arm, which were run in turn.
        fitted: the time model.
        advice: for each arm with a map.
        free: the advice that may choose among them.
    """
    chosen = None if free.setting is None else free.setting.num_redundant_experts
    found: dict[str, Any] = {
        "step_ms": round(fitted.step_ms, 2),
        "moe_ms": round(fitted.moe_ms, 2),
        "advice": free.answer,
        "advice_redundant_experts": chosen,
    }
    tokens = RANKS * PROMPTS * PROMPT_TOKENS
    for arm, rounds in taken.items():
        found[f"{arm}_median_tokens_per_s"] = round(
            tokens / statistics.median(one.seconds for one in rounds), 1
        )
        found[f"{arm}_median_expert_ms"] = round(
            statistics.median(1000 * one.expert_seconds / PROMPTS for one in rounds), 2
        )
        found[f"{arm}_balancedness"] = round(statistics.median(one.balancedness for one in rounds), 4)
    for arm, said in advice.items():
        ratios = [off.seconds / on.seconds for off, on in zip(taken["off"], taken[arm], strict=True)]
        assert said.gain is not None
        assert said.gain_interval is not None
        found[f"{arm}_to_off_ratio"] = round(statistics.median(ratios), 3)
        found[f"{arm}_to_off_ratio_interval"] = [round(end, 3) for end in median_interval(ratios)]
        found[f"{arm}_predicted_ratio"] = round(1 / (1 - said.gain), 3)
        found[f"{arm}_predicted_ratio_interval"] = [round(1 / (1 - end), 3) for end in said.gain_interval]
        found[f"{arm}_predicted_gain"] = round(said.gain, 4)
        found[f"{arm}_measured_gain"] = round(1 - 1 / statistics.median(ratios), 4)
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the median, by the bootstrap's percentiles."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def show(result: dict[str, Any]) -> None:
    """Print what was measured beside what was predicted."""
    table = Table(title=NAME, title_justify="left")
    for head in ("arm", "tokens/s", "balancedness", "times as fast as off", "predicted"):
        table.add_column(head, justify="left" if head == "arm" else "right")
    for arm, copies in ARMS.items():
        ratio = (
            f"{result[f'{arm}_to_off_ratio']} {result[f'{arm}_to_off_ratio_interval']}"
            if copies is not None
            else ""
        )
        told = f"{result[f'{arm}_predicted_ratio']}" if copies is not None else ""
        rate, balance = result[f"{arm}_median_tokens_per_s"], result[f"{arm}_balancedness"]
        table.add_row(arm.replace("_", " "), str(rate), str(balance), ratio, told)
    console = Console()
    console.print(table)
    console.print(
        f"without a map a step takes {result['step_ms']} ms, {result['moe_ms']} ms of it experts of the hottest rank; "
        f"worth it: {result['advice']}"
    )


def main(
    record: Annotated[Path | None, typer.Option("--record", help="Append the result to this file.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Timed rounds of each arm.", min=1)] = 15,
    note: Annotated[
        str | None, typer.Option("--note", help="What else the record is to say of the run.")
    ] = None,
) -> None:
    """Measure what a planned map gains on two data-parallel ranks, beside what was predicted."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "skewed-top-1"
        skewed.write_model(model, SHAPE)
        checkpoint = checkpoint_of(str(model))
        try:
            proof, result = measure(model, rounds)
        except ArmError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
    show(result)
    if record is None:
        return
    settings: dict[str, Any] = {
        "rounds": rounds,
        "prompts_of_a_rank_in_a_round": PROMPTS,
        "redundant_experts": {arm: copies for arm, copies in ARMS.items() if copies is not None},
        **({"note": note} if note else {}),
    }
    provenance = describe(checkpoint=checkpoint, environment=arm_environment())
    history.append(
        record,
        RunRecord(
            kind="serving",
            name=NAME,
            settings=settings,
            provenance=provenance,
            proof=proof,
            performance=result,
        ),
    )
    typer.echo(f"appended to {record}")


if __name__ == "__main__":
    typer.run(main)
