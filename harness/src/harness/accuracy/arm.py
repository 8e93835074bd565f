# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One arm from start to record: serve, prove, ask, score, read again, write."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from expert_maps import ExpertMapsError
from harness.accuracy import proof, versions
from harness.accuracy.arm_run import ArmRun
from harness.accuracy.asking import Asker
from harness.accuracy.client import AskError
from harness.accuracy.config import BASELINE
from harness.accuracy.evidence import Evidence, find_faults, moves
from harness.accuracy.journal import Journal
from harness.accuracy.loads import QuestionLoad
from harness.accuracy.records import texts_digest
from harness.accuracy.resume import JOURNAL, fingerprint, server_key
from harness.accuracy.schema import Forced
from harness.accuracy.server import ServerError
from harness.accuracy.serving import compare_served, serving
from harness.record.provenance import checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.accuracy.performance import Rounds
    from harness.accuracy.questions import Evaluated
    from harness.accuracy.records import Record
    from harness.accuracy.server import Server
    from harness.accuracy.settings import RunSettings

_DYING_SECONDS = 1.0


def run_arm(settings: RunSettings, name: str, baseline: Record | None, rounds: Rounds | None) -> None:
    """Run an arm; its record is written however it ends, short of a kill.

    Args:
        settings: of the run.
        name: of the arm.
        baseline: complete, whose texts are scored here too; None for the baseline itself, or without.
        rounds: time it beside the baseline; None where its speed is not measured.

    Raises:
        ExpertMapsError: it could not be run; the record says so.
    """
    run = ArmRun(settings, name)
    settings.make_folder(run.folder)
    settings.make_folder(run.work)
    # What is there of an earlier run must not be taken for this one's, whenever this one ends.
    run.write("incomplete", "the run was cut off")
    try:
        _measure(run, baseline, rounds)
    except KeyboardInterrupt:
        run.write("incomplete", "the run was interrupted")
        raise
    except ExpertMapsError as error:
        run.write("failed", str(error))
        raise
    run.write("complete", None)


def _measure(run: ArmRun, baseline: Record | None, rounds: Rounds | None) -> None:
    settings = run.settings
    with contextlib.closing(Journal(run.work / JOURNAL)) as journal:
        if run.arm.record_load and run.name not in settings.base_urls:
            run.questions_load = QuestionLoad(
                run.work, server_key(settings, run.name), fingerprint(settings, run.name)
            )
            run.questions_load.begin(resumed=len(journal) > 0)
            if len(journal):
                settings.say(
                    f"{run.name}: the load of the last seconds before the cut may be missing, or be counted twice"
                )
        with serving(run) as server, _last_words(server):
            run.found = versions.versions(server)
            run.checkpoint = checkpoint_of(settings.model) if server.is_own else compare_served(run, server)
            needed = run.arm.role == "eplb"
            before = proof.read_state(server, needed=needed)
            run.evidence = Evidence(before, None)
            _require(run, before)
            asker = Asker(run, server, journal, before.digest if before else None)
            run.evaluated, earlier, acted = _evaluate(run, asker, journal, server, before)
            _keep_load(run, server, asker.taken)
            run.forced = _forced(run, asker, baseline)
            if rounds is not None and run.name != BASELINE:
                rounds.measure(run, server)
            after = proof.read_state(server, checksums=True, needed=needed)
            faults = find_faults(run.arm, before, after, earlier, acted=acted)
            run.evidence = Evidence(before, after, faults, earlier)
        if run.questions_load is not None:
            run.load = run.questions_load.summary(after.placement if after else None)
    if run.arm.dynamic and run.evidence.rearrangements <= 0:
        msg = f"arm {run.name}: {'; '.join(faults)}"
        raise proof.ProofError(msg)


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
    run: ArmRun, asker: Asker, journal: Journal, server: Server, before: proof.State | None
) -> tuple[Evaluated, int, bool | None]:
    """Put the questions; also return the rearrangements that a run before this one saw, and whether there were any.

    The experts of a dynamic arm must have moved while it was asked. A run that goes on where another was cut off may
    have too little left to ask for that: it takes the other's word, or asks all questions anew.
    """
    if not run.arm.dynamic:
        return asker.evaluate(), 0, None
    earlier, went_on = asker.moves, len(journal) > 0
    evaluated = asker.evaluate()
    moved = moves(before, proof.read_state(server))
    if went_on and earlier + moved <= 0:
        run.settings.say(
            f"{run.name}: no experts moved in what was left to ask, so all questions are asked anew"
        )
        journal.clear()
        if run.questions_load is not None:
            run.questions_load.is_exact = False  # it holds both times
        evaluated = asker.evaluate()
        moved = moves(before, proof.read_state(server))
    asker.moves = earlier + moved
    return evaluated, earlier, earlier + moved > 0


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
