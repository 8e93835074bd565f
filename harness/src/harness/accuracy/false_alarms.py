# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Does the gate pass when nothing is wrong? Harmless changes, each judged against the same baseline.

python -m harness.accuracy.false_alarms [--model NAME] [--questions N] [--seeds N] [--bfloat16-seeds N]

A seed stands for an order of the questions, how many are handed over at a time, a random valid placement, and a replica
choice with random weights; seeds go through numbers of ranks and of redundant experts in turn. See
`harness.accuracy.harmless`.

Exit code 0: no alarm. 1: an alarm. 2: bad input, or vLLM did not start.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expert_maps import ExpertMapsError
from harness.accuracy import halves, offline, proof, trials
from harness.accuracy.config import BASELINE
from harness.accuracy.harmless import Change, draw
from harness.accuracy.offline import Trial
from harness.accuracy.options import DEFAULT_MODEL, RESULTS, SCRATCH, ModelName, Trust
from harness.accuracy.proof_pages import alarms_page
from harness.accuracy.verdict import judge

if TYPE_CHECKING:
    from harness.accuracy.offline import Engine
    from harness.accuracy.records import Record
    from harness.accuracy.settings import RunSettings
    from harness.accuracy.verdict import Verdict

NAME = "false_alarms"


def examine(settings: RunSettings, seeds: int) -> tuple[Record, list[dict[str, Any]]]:
    """Measure the baseline, then each seed's change; engines are shared by the seeds of a shape.

    Raises:
        ExpertMapsError: an engine did not start or did not serve.
    """
    baseline, floor, _ = trials.measure_baseline(settings)
    changes = [draw(seed, settings.dtype) for seed in range(seeds)]
    changes.sort(key=lambda one: (one.shape.ranks, one.shape.redundant, one.seed))
    judged = []
    for shape, some in groupby(changes, key=lambda change: change.shape):
        settings.say(f"{shape.ranks} ranks, {shape.redundant} redundant experts: starting vLLM")
        with offline.engine(settings, *shape.arguments, additional=shape.additional) as engine:
            for change in some:
                judged.append(_judge(settings, engine, (baseline, floor), change))
                settings.say(f"seed {change.seed}: {judged[-1]['line']}")
    return baseline, sorted(judged, key=lambda one: one["seed"])


def _judge(
    settings: RunSettings, engine: Engine, beside: tuple[Record, Record | None], change: Change
) -> dict[str, Any]:
    """Serve a seed's change and judge it beside the baseline, in 16 bits with its repeat."""
    baseline, floor = beside
    digest = None if change.shape.is_repeat else _place(engine, change)
    role = BASELINE if change.shape.is_repeat else "eplb"
    trial = Trial(f"seed-{change.seed}", role, change.shape.arguments, change.order)
    record, _ = offline.measure(engine, settings, trial, baseline)
    if record.summary.placement.digest != digest:
        msg = f"seed {change.seed} was served with {record.summary.placement.digest}; expected {digest}"
        raise ExpertMapsError(msg)
    verdict = judge(baseline, record, floor=floor, repeat=digest is None)
    return trial_of(change, digest, record.summary.value, verdict)


def trial_of(change: Change, digest: str | None, value: float | None, verdict: Verdict) -> dict[str, Any]:
    """Return what came of a seed as an object of JSON."""
    found = trials.trial_as_json(verdict, value)
    return {**change.as_json(), "digest": digest, **found, "alarm": verdict.answer == "worse"}


def record_of(baseline: Record, judged: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the record of all seeds; the same seed in two dtypes is not two changes."""
    proofs = {
        dtype: halves.prove_harmless(dtype, [one for one in judged if one["dtype"] == dtype]).as_json()
        for dtype in dict.fromkeys(one["dtype"] for one in judged)
    }
    counts = {"changes": len(judged), "alarms": sum(one["alarm"] for one in judged)}
    return {**trials.about(baseline), **counts, "dtypes": proofs, "seeds": judged}


def _place(engine: Engine, change: Change) -> str:
    """Move the engine's experts to the seed's placement; its digest.

    Raises:
        ProofError: the engine has no placement.
    """
    live = proof.read_state(engine)
    if live is None or live.placement is None:
        msg = "the engine reports no placement; expected EPLB to be active"
        raise proof.ProofError(msg)
    target = change.placement(live.placement.num_logical_experts, live.placement.num_layers)
    weights = change.weights(target)
    rows = target.physical_to_logical.tolist()
    engine.call("place_experts", rows, change.choice, None if weights is None else weights.tolist())
    return target.digest


def false_alarms_command(
    model: ModelName = DEFAULT_MODEL,
    questions: trials.Questions = trials.QUESTIONS,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="In the model's dtype.")] = halves.SEEDS,
    bfloat16_seeds: Annotated[
        int, typer.Option("--bfloat16-seeds", min=0, help="Further ones.")
    ] = halves.SEEDS,
    output: trials.Output = None,
    scratch: trials.Scratch = SCRATCH,
    *,
    keep: trials.Keep = False,
    trust: Trust = False,
) -> None:
    """Judge harmless changes: order, batches, placements, replica choice and ranks must not raise an alarm."""
    try:
        settings = trials.settings_for(model, scratch / NAME, questions, trusted=trust)
        with settings.locked():
            baseline, judged = examine(settings, seeds)
            if bfloat16_seeds:
                folder = scratch / f"{NAME}-bfloat16"
                half = trials.settings_for(model, folder, questions, "bfloat16", trusted=trust)
                judged += examine(half, bfloat16_seeds)[1]
        folder = (output or (RESULTS if keep else SCRATCH)) / settings.config.name
        found = record_of(baseline, judged)
        trials.write_both(folder, NAME, alarms_page(found), found)
    except (ExpertMapsError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(1 if found["alarms"] else 0)


if __name__ == "__main__":
    trials.run_alone(false_alarms_command, __doc__)
