# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One arm from start to record: serve, prove, ask, score, read again, write."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError, plan, read_load, write_placement
from expert_maps.files import write_text
from harness.accuracy import proof, versions
from harness.accuracy.asking import Asker
from harness.accuracy.client import AskError
from harness.accuracy.config import BASELINE, ConfigError
from harness.accuracy.loads import LOAD_FILE, NOT_RECORDED, QuestionLoad
from harness.accuracy.records import texts_digest, write_record
from harness.accuracy.resume import JOURNAL, MOVES_FILE, fingerprint, server_key
from harness.accuracy.schema import Forced, Summary, task_version
from harness.accuracy.server import ServerError, attach, serve
from harness.record.provenance import checkout, checkpoint_of
from harness.record.schema import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from expert_maps import Placement
    from harness.accuracy.config import Arm
    from harness.accuracy.questions import Evaluated
    from harness.accuracy.records import Record
    from harness.accuracy.schema import Question
    from harness.accuracy.server import Server
    from harness.accuracy.settings import RunSettings

MAP_FILE = "expert_map.json"
_DYING_SECONDS = 1.0
# The development endpoints carry the proof; nobody is told that vLLM was used.
_ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass
class ArmRun:
    """What is known of an arm while it runs; the record is made of it.

    Attributes:
        settings: of the run.
        name: of the arm.
        arguments: of the server, as a record shows them.
        placement: the planned one; None where none was planned here.
        evidence: read from the server; None until then.
        evaluated: None until all questions are scored.
        found: versions; None until there is a server.
        forced: log-probabilities of the baseline's texts; None where they were not measured.
        load: the part `load` of a record.
        questions_load: of the questions; None where the arm records none, or another's server is asked.
        checkpoint: what is served; None until there is a server.
    """

    settings: RunSettings
    name: str
    arguments: list[str] = field(default_factory=list)
    placement: Placement | None = None
    evidence: proof.Evidence | None = None
    evaluated: Evaluated | None = None
    found: dict[str, str | None] | None = None
    forced: list[Forced] | None = None
    load: dict[str, Any] = field(default_factory=lambda: dict(NOT_RECORDED))
    questions_load: QuestionLoad | None = None
    checkpoint: Checkpoint | None = None
    _started: float = field(default_factory=time.monotonic)
    _started_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def arm(self) -> Arm:
        """The arm's configuration."""
        return self.settings.config.arms[self.name]

    @property
    def folder(self) -> Path:
        """Where the record goes."""
        return self.settings.folder / self.name

    @property
    def work(self) -> Path:
        """Where journal, log and load are kept while the arm runs."""
        return self.settings.work / self.name

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the server that the harness starts; none for another's."""
        if self.name in self.settings.base_urls:
            return {}
        return {**_ENVIRONMENT, **self.settings.config.server.environment, **self.arm.environment}

    @property
    def folders(self) -> dict[Path, str]:
        """What a record calls the folders of this run."""
        return {self.folder: "", self.work: "work", Path.cwd(): ""}

    def write(self, status: str, reason: str | None) -> Summary:
        """Write the record as far as it is known."""
        config = self.settings.config
        names = list(self.environment)
        values = versions.shown([reason or "", *self.environment.values()], self.folders)
        questions: list[Question] = self.evaluated.questions if self.evaluated else []
        correct = sum(question.correct for question in questions)
        evidence = self.evidence or proof.Evidence(None, None)
        summary = {
            "format": 1,
            "status": status,
            "reason": values[0] or None,
            "model": config.name,
            "arm": self.name,
            "role": self.arm.role,
            "task": self.evaluated.record(config.task) if self.evaluated else self._unasked(),
            "value": 100 * correct / len(questions) if status == "complete" else None,
            "num_questions": len(questions),
            "num_correct": correct,
            "dtype": self.settings.dtype,
            "server": {
                "arguments": self.arguments,
                "environment": dict(zip(names, values[1:], strict=True)),
                "started_by_harness": self.name not in self.settings.base_urls,
            },
            "versions": self.found or dict.fromkeys(versions.NAMES),
            "git": dict(zip(("commit", "dirty"), checkout(), strict=True)),
            "placement": evidence.as_record(),
            "environment": versions.machine(self.environment),
            "load": self.load,
            "seconds": round(time.monotonic() - self._started, 1),
            "started": self._started_at,
            "expected": config.expected.model_dump(),
            "checkpoint": None if self.checkpoint is None else self.checkpoint.model_dump(),
        }
        checked = Summary.model_validate_json(json.dumps(summary))
        forced = self.forced if status == "complete" else None
        write_record(self.folder, checked, questions, forced)
        return checked

    def _unasked(self) -> dict[str, Any]:
        task = self.settings.config.task
        return {
            "dataset": task.dataset,
            "version": task_version({}),
            "metric": "accuracy",
            "mode": "gen",
            "num_fewshot": task.num_fewshot,
            "configuration": {},
        }


def run_arm(settings: RunSettings, name: str, baseline: Record | None) -> Summary:
    """Run an arm; its record is written however it ends, short of a kill.

    Args:
        settings: of the run.
        name: of the arm.
        baseline: complete, whose texts are scored here too; None for the baseline itself, or without.

    Raises:
        ExpertMapsError: it could not be run; the record says so.
    """
    run = ArmRun(settings, name)
    settings.make_folder(run.folder)
    settings.make_folder(run.work)
    # What is there of an earlier run must not be taken for this one's, whenever this one ends.
    run.write("incomplete", "the run was cut off")
    try:
        _measure(run, baseline)
    except KeyboardInterrupt:
        run.write("incomplete", "the run was interrupted")
        raise
    except ExpertMapsError as error:
        run.write("failed", str(error))
        raise
    assert run.evidence is not None
    if run.arm.dynamic and run.evidence.rearrangements <= 0:
        msg = f"arm {name}: {'; '.join(run.evidence.faults)}"
        run.write("failed", msg)
        raise proof.ProofError(msg)
    return run.write("complete", None)


def _measure(run: ArmRun, baseline: Record | None) -> None:
    settings = run.settings
    with contextlib.closing(Asker(run.work / JOURNAL, settings)) as asker:
        if run.arm.record_load and run.name not in settings.base_urls:
            run.questions_load = QuestionLoad(
                run.work, server_key(settings, run.name), fingerprint(settings, run.name)
            )
            run.questions_load.begin(resumed=asker.has_answers)
            if asker.has_answers:
                settings.say(f"{run.name}: the load of the last seconds before the cut may be missing")
        with _server(run) as server, _last_words(server):
            run.found = versions.versions(server)
            run.checkpoint = checkpoint_of(settings.model)
            if not server.is_own:
                run.checkpoint = _compare_served(run, server)
            needed = run.arm.role == "eplb"
            before = proof.read_state(server, needed=needed)
            run.evidence = proof.Evidence(before, None)
            _require(run, before)
            asker.bind(server, run.name, run.arguments, run.environment, before.digest if before else None)
            run.evaluated, earlier, acted = _evaluate(run, asker, server, before)
            _keep_load(run, server, asker.taken)
            run.forced = _forced(run, asker, baseline)
            after = proof.read_state(server, checksums=True, needed=needed)
            faults = proof.find_faults(run.arm, before, after, earlier, acted=acted)
            run.evidence = proof.Evidence(before, after, faults, earlier)
        if run.questions_load is not None:
            run.load = run.questions_load.summary(after.placement if after else None)


def _keep_load(run: ArmRun, server: Server, taken: int) -> None:
    """Keep the load of the questions, before texts are scored: their tokens are recorded, too."""
    if run.questions_load is not None:
        state = proof.read_state(server, needed=False)
        run.questions_load.keep(state.recorded_steps if state else None, taken, run.settings.say)


@contextlib.contextmanager
def _last_words(server: Server) -> Iterator[None]:
    """Let a server that died say why, where all that was seen is that it does not answer."""
    try:
        yield
    except (ServerError, AskError):
        time.sleep(_DYING_SECONDS)
        server.require_alive()
        raise


def _evaluate(
    run: ArmRun, asker: Asker, server: Server, before: proof.State | None
) -> tuple[Evaluated, int, bool | None]:
    """Put the questions; also return the rearrangements that a run before this one saw, and whether there were any.

    The experts of a dynamic arm must have moved while it was asked. A run that goes on where another was cut off may
    have too little left to ask for that: it takes the other's word, or asks all questions anew.
    """
    if not run.arm.dynamic:
        return asker.evaluate(), 0, None
    kept = run.work / MOVES_FILE
    earlier = _earlier_moves(kept, asker)
    went_on = asker.has_answers
    evaluated = asker.evaluate()
    moved = proof.moves(before, proof.read_state(server))
    if went_on and earlier + moved <= 0:
        run.settings.say(
            f"{run.name}: no experts moved in what was left to ask, so all questions are asked anew"
        )
        asker.forget()
        if run.questions_load is not None:
            run.questions_load.is_exact = False  # it holds both times
        evaluated = asker.evaluate()
        moved = proof.moves(before, proof.read_state(server))
    write_text(kept, json.dumps({"context": asker.context, "rearrangements": earlier + moved}) + "\n")
    return evaluated, earlier, earlier + moved > 0


def _earlier_moves(kept: Path, asker: Asker) -> int:
    """Return the rearrangements that a run with the same server, model and questions wrote down."""
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        return int(found["rearrangements"]) if found["context"] == asker.context else 0
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _compare_served(run: ArmRun, server: Server) -> Checkpoint:
    """Return what another's server serves, whose files are not here, and say where it is not what was asked for.

    Raises:
        ProofError: its dtype is another.
    """
    settings = run.settings
    described = server.describe()
    names = {Path(text).name for one in described for text in one[:2] if isinstance(text, str)}
    wanted = {settings.config.name, Path(settings.config.model).name, Path(settings.model).name}
    if not names & wanted:
        settings.say(
            f"{run.name}: the server serves {', '.join(sorted(names))}; expected one of {', '.join(sorted(wanted))}"
        )
    found = server.dtype()
    if found not in {None, settings.dtype}:
        msg = f"arm {run.name} was not asked anything: the server computes in {found}; expected {settings.dtype}"
        raise proof.ProofError(msg)
    roots = {Path(text).name for one in described if isinstance(text := one[1] or one[0], str)}
    return Checkpoint(name=", ".join(sorted(roots)))


def _require(run: ArmRun, before: proof.State | None) -> None:
    try:
        proof.require_arm(run.arm, before, run.placement)
    except proof.ProofError as error:
        msg = f"arm {run.name} was not asked anything: {error}"
        raise proof.ProofError(msg) from error
    if before is not None and before.digest is not None:
        run.settings.say(
            f"{run.name}: {'EPLB active' if before.is_eplb else 'EPLB not active'}, digest {before.digest[:12]}, "
            f"{before.num_redundant_experts} redundant experts on {before.ep_size} ranks"
        )


@contextlib.contextmanager
def _server(run: ArmRun) -> Iterator[Server]:
    settings = run.settings
    url = settings.base_urls.get(run.name)
    if url is not None:
        yield attach(url)
        return
    expert_map = _plan(run)
    additional = run.arm.additional(
        record=run.questions_load.recorded.absolute() if run.questions_load else None,
        expert_map=None if expert_map is None else expert_map.absolute(),
    )
    arguments = [*settings.config.server.arguments, *run.arm.arguments, "--dtype", settings.dtype]
    if additional:
        arguments += ["--additional-config", json.dumps(additional)]
    run.arguments = ["--model", *versions.shown([settings.model, *arguments], run.folders)]
    settings.say(f"{run.name}: starting vLLM, log in {run.work / 'server.log'}")
    with serve(
        settings.model,
        arguments,
        run.work / "server.log",
        environment=run.environment,
        startup_seconds=settings.startup_seconds,
        name=settings.config.name,
    ) as server:
        yield server


def _plan(run: ArmRun) -> Path | None:
    """Plan the arm's placement from recorded load and write it beside the record."""
    wanted = run.arm.plan
    if wanted is None:
        return None
    path = run.folder / MAP_FILE
    run.placement = wanted.named()
    if run.placement is not None:
        write_placement(run.placement, path)
        return path
    source = (
        Path(wanted.load) if wanted.load else run.settings.work / (wanted.load_of or BASELINE) / LOAD_FILE
    )
    if not source.exists():
        msg = (
            f"arm {run.name} is planned from {source}, which is absent; expected the arm {wanted.load_of} to have "
            "run before, in this run or one before it"
        )
        raise ConfigError(msg)
    load = read_load(source)
    # Summed over steps: how requests fell into steps differs from run to run, their sum does not.
    planned = plan(
        load.total,
        num_physical_experts=load.num_experts + wanted.num_redundant_experts,
        ep_size=wanted.ep_size,
    )
    run.placement = planned.placement
    write_placement(planned.placement, path)
    run.settings.say(
        f"{run.name}: planned from {load.total.sum():.0f} recorded choices of experts, balancedness "
        f"at least {planned.balancedness.min():.3f} in each of {load.num_layers} layers, digest "
        f"{planned.placement.digest[:12]}"
    )
    return path


def _forced(run: ArmRun, asker: Asker, baseline: Record | None) -> list[Forced] | None:
    """Score the baseline's texts; None where they are not those of the same questions, or it is not wanted."""
    assert run.evaluated is not None
    if not run.settings.config.logprobs:
        return None
    own = run.evaluated.questions
    source = own if run.name == BASELINE else list(baseline.questions) if baseline else []
    asked = [(question.doc_hash, question.prompt_hash) for question in own]
    if [(question.doc_hash, question.prompt_hash) for question in source] != asked:
        run.settings.say(
            f"{run.name}: no log-probabilities: there is no baseline that was asked the same questions"
        )
        return None
    digest = texts_digest(question.text for question in source)
    scored = asker.force([(run.evaluated.prompts[question.index], question.text) for question in source])
    return [
        Forced(doc_hash=question.doc_hash, forced_from=digest, logprobs=values)
        for question, values in zip(source, scored, strict=True)
    ]
