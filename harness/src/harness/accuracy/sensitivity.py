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

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expert_maps import ExpertMapsError, write_placement
from harness.accuracy import int8, offline, trials
from harness.accuracy.config import ConfigError
from harness.accuracy.faults import KINDS, Fault, Kind, choose, is_of_a_replica
from harness.accuracy.offline import DidNotServeError, Order, Trial
from harness.accuracy.run import DEFAULT_MODEL, RESULTS, SCRATCH
from harness.accuracy.sensitivity_page import Outcome, Part, as_json, page
from harness.accuracy.verdict import judge

if TYPE_CHECKING:
    from harness.accuracy.offline import Engine, Measured
    from harness.accuracy.records import Record
    from harness.accuracy.settings import RunSettings

NAME = "sensitivity"
_SCALES: Kind = "stale scale"
# It may end the engine, so it comes last, and once.
_FATAL: Kind = "physical-length map, past its end"
_MAP_FILE = "expert_map.json"


@dataclass(frozen=True)
class Bench:
    """An engine with redundant experts that answers right, beside the baseline.

    Attributes:
        settings: of the run.
        engine: is broken and repaired.
        baseline: whose texts are scored.
        clean: the engine before the first fault.
    """

    settings: RunSettings
    engine: Engine
    baseline: Record
    clean: Measured

    def try_fault(self, fault: Fault) -> Outcome:
        """Break a layer, measure, judge, set it back, and check that it is as it was.

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
            found = offline.measure(self.engine, self.settings, Trial(name, "eplb"), self.baseline).record
        except DidNotServeError as error:
            return Outcome(fault, stopped=str(error))
        self.engine.call("restore_fault")
        verdict = judge(self.baseline, found)
        return Outcome(fault, found.summary.value, verdict, restored=self._restored(before))

    def _restored(self, before: list[Any]) -> float:
        """Return the largest |Δ log-probability| to the engine before the first fault.

        Raises:
            ExpertMapsError: weights or tables are not what they were.
        """
        if self.engine.call("serving_digests") != before:
            msg = "weights or tables are not what they were before the fault; expected the same bytes"
            raise ExpertMapsError(msg)
        rows = offline.forced(self.engine, self.clean.evaluated, Order(), self.baseline)
        pairs = zip(self.clean.record.logprobs or (), rows, strict=True)
        return max(
            abs(one - other)
            for first, second in pairs
            for one, other in zip(first.logprobs, second.logprobs, strict=True)
        )


@dataclass(frozen=True)
class Plan:
    """Which faults are tried where.

    Attributes:
        kinds: of faults.
        layers: only the first so many; None for all.
        replicas: how many are drawn in each layer.
    """

    kinds: tuple[Kind, ...]
    layers: int | None
    replicas: int

    def only(self, *kinds: Kind) -> tuple[Kind, ...]:
        """Return those of some kinds that are tried."""
        return tuple(kind for kind in self.kinds if kind in kinds)


def examine(settings: RunSettings, plan: Plan, kinds: tuple[Kind, ...]) -> Part:
    """Measure the baseline and the arm with redundant experts, then every fault.

    Raises:
        ExpertMapsError: something else than a fault went wrong.
    """
    baseline, load = trials.measure_baseline(settings)
    placement = trials.planned(settings, load)
    path = settings.work / _MAP_FILE
    write_placement(placement, path)
    settings.say(f"redundant experts: starting vLLM with digest {placement.digest[:12]}")
    with offline.engine(settings, additional={"expert_map_path": str(path.absolute())}) as engine:
        clean = offline.measure(engine, settings, Trial("clean", "eplb"), baseline)
        part = Part(baseline, clean.record, judge(baseline, clean.record))
        settings.say(f"clean: {part.clean_verdict.line}")
        bench = Bench(settings, engine, baseline, clean)
        layers = range(min(placement.num_layers, plan.layers or placement.num_layers))
        for kind in kinds:
            for layer in layers if kind != _FATAL else [layers[-1]]:
                for seed in range(plan.replicas if is_of_a_replica(kind) else 1):
                    outcome = bench.try_fault(choose(placement, kind, layer, seed))
                    part.outcomes.append(outcome)
                    settings.say(f"{kind}, layer {layer}: {outcome.line}")
    return part


def sensitivity_command(
    model: Annotated[
        str, typer.Option("--model", help="A name in accuracy/models, or a .yaml file.")
    ] = DEFAULT_MODEL,
    questions: Annotated[
        int, typer.Option("--questions", min=1, help="The first so many.")
    ] = trials.QUESTIONS,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Replicas drawn in each layer.")] = 1,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Only the first so many.")] = None,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", help="Only this kind of fault; may be repeated.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", help="Folder of results; the model's name is added.")
    ] = RESULTS,
    scratch: Annotated[Path, typer.Option("--scratch", help="Folder for the records of each arm.")] = SCRATCH,
    *,
    trust: Annotated[bool, typer.Option("--trust", help="Let the .yaml file set what can run code.")] = False,
) -> None:
    """Inject faults into a running model: the gate must fail for each, and a table says which criterion did."""
    try:
        kinds = _kinds(fault)
        plan = Plan(kinds, layers, replicas)
        settings = trials.settings_for(model, scratch / NAME, questions, trusted=trust)
        parts = []
        with settings.locked():
            whole = tuple(kind for kind in kinds if kind not in {_SCALES, _FATAL}) + plan.only(_FATAL)
            if whole:
                parts.append(examine(settings, plan, whole))
            if _SCALES in kinds:
                folder = int8.quantise_checkpoint(Path(settings.model), settings.work / "int8")
                parts.append(
                    examine(trials.with_checkpoint(settings, folder, "bfloat16"), plan, plan.only(_SCALES))
                )
        folder = output / settings.config.name
        trials.write_both(folder, NAME, page(parts), as_json(parts))
        typer.echo(f"wrote {folder / NAME}.md and .json")
    except (ExpertMapsError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(0 if all(part.is_sensitive for part in parts) else 1)


def _kinds(names: list[str] | None) -> tuple[Kind, ...]:
    for name in names or ():
        if name not in KINDS:
            msg = f"fault is {name!r}; expected one of {', '.join(repr(kind) for kind in KINDS)}"
            raise ConfigError(msg)
    return tuple(kind for kind in KINDS if not names or kind in names)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=__doc__)(sensitivity_command)
    app()
