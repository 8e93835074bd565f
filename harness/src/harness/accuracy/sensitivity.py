# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Does the gate fail when something is wrong? Faults are injected into a running model, one at a time.

python -m harness.accuracy.sensitivity [--model NAME] [--questions N] [--replicas N] [--layers N] [--fault KIND …]

Each fault of `harness.accuracy.faults` is done to every MoE layer in turn, in the engine that serves the placement with
redundant experts; the same questions are asked and the baseline's texts scored, then the layer is set back and must
answer as before. The table says which criterion of the verdict caught it, and whether the answers alone would have.

Exit code 0: the gate failed for every fault and for nothing else. 1: it did not. 2: bad input.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expert_maps import ExpertMapsError, write_placement
from expert_maps.files import read_json
from harness.accuracy import halves, int8, offline, trials
from harness.accuracy.config import ConfigError
from harness.accuracy.faults import KINDS, Fault, Kind, choose, is_of_a_replica
from harness.accuracy.offline import DidNotServeError, Order, Trial
from harness.accuracy.options import DEFAULT_MODEL, RESULTS, SCRATCH, ModelName, Trust
from harness.accuracy.proof_pages import faults_page, is_caught_by_answers
from harness.accuracy.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.offline import Engine
    from harness.accuracy.questions import Evaluated
    from harness.accuracy.records import Record
    from harness.accuracy.settings import RunSettings
    from harness.accuracy.verdict import Verdict

NAME = "sensitivity"
_SCALES: Kind = "stale scale"
# It may end the engine, so it comes last, and once.
_FATAL: Kind = "physical-length map, past its end"


@dataclass(frozen=True)
class Bench:
    """An engine with redundant experts that answers right, beside the baseline.

    Attributes:
        settings: of the run.
        engine: is broken and repaired.
        baseline: whose texts are scored.
        clean: the engine before the first fault, with the prompts.
        floor: the baseline once more, in 16 bits.
    """

    settings: RunSettings
    engine: Engine
    baseline: Record
    clean: tuple[Record, Evaluated]
    floor: Record | None = None

    def try_fault(self, fault: Fault) -> dict[str, Any]:
        """Break a layer, measure, judge, set it back, and check that it is as it was.

        Returns:
            What came of it, as `trial_of` writes it.

        Raises:
            ExpertMapsError: the fault changed nothing, or could not be undone.
        """
        before = self.engine.call("serving_digests")
        name = f"{fault.kind}-{fault.layer}-{fault.seed}".replace(",", "").replace(" ", "-")
        self.engine.call("inject_fault", fault.kind, fault.layer, fault.slot, fault.seed)
        if self.engine.call("serving_digests") == before:
            msg = f"the fault {fault.kind!r} changed nothing in layer {fault.layer}; expected another digest"
            raise ExpertMapsError(msg)
        try:
            found, _ = offline.measure(self.engine, self.settings, Trial(name, "eplb"), self.baseline)
        except DidNotServeError as error:
            return trial_of(fault, None, stopped=str(error))
        self.engine.call("restore_fault")
        verdict = judge(self.baseline, found, floor=self.floor)
        return trial_of(fault, verdict, found.summary.value, restored=self._restored(before))

    def _restored(self, before: list[Any]) -> float:
        """Return the largest |Δ log-probability| to the engine before the first fault.

        Raises:
            ExpertMapsError: weights or tables are not what they were.
        """
        if self.engine.call("serving_digests") != before:
            msg = "weights or tables are not what they were before the fault; expected the same bytes"
            raise ExpertMapsError(msg)
        record, evaluated = self.clean
        rows = offline.forced(self.engine, evaluated, Order(), self.baseline)
        return max(
            abs(one - other)
            for first, second in zip(record.logprobs or (), rows, strict=True)
            for one, other in zip(first.logprobs, second.logprobs, strict=True)
        )


def trial_of(
    fault: Fault,
    verdict: Verdict | None,
    value: float | None = None,
    *,
    stopped: str | None = None,
    restored: float | None = None,
) -> dict[str, Any]:
    """Return what came of a fault as an object of JSON.

    Args:
        fault: and its place.
        verdict: None where the engine stopped: it has no complete record, so that it cannot pass.
        value: accuracy in percent.
        stopped: why the engine stopped; None where it served.
        restored: largest |Δ log-probability| to before the first fault, after it was undone.
    """
    trial = {**asdict(fault), **trials.trial_as_json(verdict, value), "stopped": stopped}
    return {
        **trial,
        "caught": verdict is None or verdict.answer == "worse",
        "caught_by": ["did not serve"] if verdict is None else halves.failed(trial),
        "caught_by_answers_alone": is_caught_by_answers(trial),
        "restored_largest": restored,
    }


def is_sensitive(part: dict[str, Any]) -> bool:
    """Say whether the gate failed for every fault, and for nothing else."""
    return part["clean"]["verdict"] != "worse" and all(one["caught"] for one in part["faults"])


def examine(
    settings: RunSettings, kinds: Sequence[Kind], layers: int | None, replicas: int
) -> dict[str, Any]:
    """Measure the baseline and the arm with redundant experts, then every fault.

    Args:
        settings: of the run.
        kinds: of faults.
        layers: only the first so many; None for all.
        replicas: how many are drawn in each layer.

    Returns:
        The faults of one checkpoint as an object of JSON.

    Raises:
        ExpertMapsError: something else than a fault went wrong.
    """
    baseline, floor, load = trials.measure_baseline(settings)
    placement = trials.planned(settings, load)
    path = settings.work / "expert_map.json"
    write_placement(placement, path)
    settings.say(f"redundant experts: starting vLLM with digest {placement.digest[:12]}")
    with offline.engine(settings, additional={"expert_map_path": str(path.absolute())}) as engine:
        clean = offline.measure(engine, settings, Trial("clean", "eplb"), baseline)
        summary, verdict = clean[0].summary, judge(baseline, clean[0], floor=floor)
        settings.say(f"clean: {verdict.line}")
        part: dict[str, Any] = {
            **trials.about(baseline),
            "dtype": settings.dtype,
            "experts": "int8" if settings.model.endswith("int8") else settings.dtype,
            "digest": summary.placement.digest,
            "clean": trials.trial_as_json(verdict, summary.value),
            "faults": [],
        }
        bench = Bench(settings, engine, baseline, clean, floor)
        chosen = range(min(placement.num_layers, layers or placement.num_layers))
        for kind in kinds:
            for layer in chosen if kind != _FATAL else chosen[-1:]:
                for seed in range(replicas if is_of_a_replica(kind) else 1):
                    outcome = bench.try_fault(choose(placement, kind, layer, seed))
                    part["faults"].append(outcome)
                    by = f"caught by {', '.join(outcome['caught_by'])}" if outcome["caught"] else "NOT CAUGHT"
                    settings.say(f"{kind}, layer {layer}: {by}")
    return part


def sensitivity_command(  # noqa: PLR0913 - an option each
    model: ModelName = DEFAULT_MODEL,
    questions: trials.Questions = trials.QUESTIONS,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Replicas drawn in each layer.")] = 1,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Only the first so many.")] = None,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", help="Only this kind of fault; may be repeated.")
    ] = None,
    output: trials.Output = None,
    scratch: trials.Scratch = SCRATCH,
    *,
    keep: trials.Keep = False,
    trust: Trust = False,
) -> None:
    """Inject faults into a running model: the gate must fail for each, and a table says which criterion did."""
    try:
        kinds = _kinds(fault)
        settings = trials.settings_for(model, scratch / NAME, questions, trusted=trust)
        parts = []
        with settings.locked():
            if whole := sorted(set(kinds) - {_SCALES}, key=lambda kind: (kind == _FATAL, KINDS.index(kind))):
                parts.append(examine(settings, whole, layers, replicas))
            if _SCALES in kinds:
                folder = int8.quantise_checkpoint(Path(settings.model), settings.work / "int8")
                quantised = trials.with_checkpoint(settings, folder, "bfloat16")
                parts.append(examine(quantised, [_SCALES], layers, replicas))
        folder = (output or (RESULTS if keep else SCRATCH)) / settings.config.name
        of_part = {"dtype", "experts", "digest", "clean", "faults"}
        record = {name: value for name, value in parts[0].items() if name not in of_part} | {"parts": parts}
        alarms = folder / "false_alarms.json"
        harmless: Any = read_json(alarms) if alarms.exists() else None
        trials.write_both(folder, NAME, faults_page(record, harmless), record)
    except (ExpertMapsError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(0 if all(map(is_sensitive, parts)) else 1)


def _kinds(names: list[str] | None) -> list[Kind]:
    for name in names or ():
        if name not in KINDS:
            msg = f"fault is {name!r}; expected one of {', '.join(repr(kind) for kind in KINDS)}"
            raise ConfigError(msg)
    return [kind for kind in KINDS if not names or kind in names]


if __name__ == "__main__":
    trials.run_alone(sensitivity_command, __doc__)
