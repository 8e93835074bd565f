# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every case of some releases: served, judged, and put into one table."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.ascend import engine, models, server
from harness.ascend.case import Case
from harness.ascend.cases import cases_for
from harness.ascend.forkserver import ForkServers
from harness.ascend.judging import Judged, Reference, judge
from harness.ascend.models import SIZES, size_of
from harness.ascend.prompts import prompts_for
from harness.ascend.served import Served, compare_tokens
from harness.ascend.stage import ROOT, Staged, stage
from harness.ascend.tables import experts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vllm_ascend_moe.releases import Release

# Engines at a time: each keeps a core busy and a half, and waits for its ranks in between.
AT_ONCE = 3
_ROUNDS_TO_MOVE = 2


class SessionError(RuntimeError):
    """A reference could not be had, so nothing can be compared."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        release: of vllm-ascend; ``vLLM 0.32.0`` for vLLM's CPU build alone.
        case: what was served.
        judged: what it showed.
    """

    release: str
    case: Case
    judged: Judged

    @property
    def record(self) -> dict[str, object]:
        """The row as plain values, for a record."""
        case = self.case
        told = asdict(self.judged)
        return {
            "release": self.release,
            "case": case.name,
            "model": case.model.name,
            "chip": case.chip,
            "expected": case.expected,
            **told,
        }


def run_releases(
    releases: Sequence[Release], say: Callable[[str], None], root: Path = ROOT, *, every: bool = True
) -> list[Row]:
    """Serve every case of the releases.

    Args:
        releases: of the table.
        say: is told of each case as it ends.
        root: where everything is kept.
        every: for each release every case; if not, what is the same in all is served beside the first alone.

    Raises:
        SessionError: see the class.
        ContractError: a release could not be fetched.
    """
    rows: list[Future[Row]] = []
    with ForkServers(root.absolute() / "runs") as servers, ThreadPoolExecutor(AT_ONCE) as pool:
        plain = {model: pool.submit(_reference, None, model, root, servers) for model in SIZES}
        for number, release in enumerate(releases):
            # The next is fetched and laid out while engines of those before it run.
            staged = stage(release, root)
            alone = {model: pool.submit(_reference, staged, model, root, servers) for model in SIZES}
            runs = root.absolute() / "runs" / release.vllm_ascend
            cases = cases_for(release, runs, every=every or number == 0)
            # What two ranks round otherwise than one is compared with two; with drafts texts are those without.
            alone |= {
                model: alone[models.TINY_DEEPSEEK]
                if model.name == models.DRAFTING
                else pool.submit(_reference, staged, model, root, servers, 2)
                for model in models.make(case.model for case in cases)
            }
            # In the order in which they are started, so that what one waits for has been started before it.
            rows += [
                pool.submit(_one_rank, release.vllm_ascend, model, alone[model], plain[model])
                for model in SIZES
            ]
            rows += [
                pool.submit(_run, staged, case, runs / f"case-{place}", alone.get(case.model), say, servers)
                for place, case in enumerate(cases)
            ]
        return [row.result() for row in rows]


def _run(
    staged: Staged,
    case: Case,
    folder: Path,
    reference: Future[Reference] | None,
    say: Callable[[str], None],
    servers: ForkServers,
) -> Row:
    version = staged.release.vllm_ascend
    judged = judge(
        case, _serve(staged, case, folder, servers), None if reference is None else reference.result()
    )
    say(f"{version} {case.chip} {case.model.name}, {case.name}: {_outcome(judged)}")
    return Row(version, case, judged)


def _outcome(judged: Judged) -> str:
    if judged.problems:
        return f"FAILED in {judged.seconds:.0f} s: {'; '.join(judged.problems)}"
    return f"{'refused' if judged.refused else 'as expected'} in {judged.seconds:.0f} s"


def _reference(
    staged: Staged | None, model: Path, root: Path, servers: ForkServers, ranks: int = 1
) -> Reference:
    """Serve a model without the plugin, on one rank or on two in vLLM's linear layout."""
    where = "vllm" if staged is None else staged.release.vllm_ascend
    folder = root / "runs" / where / f"{ranks}-rank-{model.name}"
    request = {"engine": engine.options(model, ranks, None), "prompts": prompts_for(model)}
    variables = engine.environment(staged, "A2" if ranks == 1 else "A3", folder, plugin=False)
    served = engine.serve(request, folder, variables, servers=servers)
    if served.tokens is None:
        msg = f"{where}, {ranks} rank without the plugin: {served.failed}; expected it to serve {model}"
        raise SessionError(msg)
    _, experts = size_of(model)
    return Reference(
        served.tokens,
        served.rounds[0]["logprobs"],
        experts_of(served.inspections[-1], experts),
        served.seconds,
        served.paths,
    )


def _one_rank(version: str, model: Path, alone: Future[Reference], cpu_build: Future[Reference]) -> Row:
    """Compare one rank without the plugin with vLLM's CPU build."""
    found, plain = alone.result(), cpu_build.result()
    case = Case("one rank, without the plugin", model, "A2", ranks=1)
    judged = Judged(seconds=found.seconds, paths=found.paths)
    judged.equal = compare_tokens(found.tokens, plain.tokens)
    if judged.equal[0] != judged.equal[1]:
        judged.problems.append("texts differ from vLLM's CPU build")
    return Row(version, case, judged)


def _serve(staged: Staged, case: Case, folder: Path, servers: ForkServers) -> Served:
    variables = engine.environment(staged, case.chip, folder, plugin=True, runner=case.runner)
    if case.load is not None:
        # One that is there would be continued.
        case.load.unlink(missing_ok=True)
    num_rounds = _ROUNDS_TO_MOVE if case.moves or case.record else 1
    if case.is_server:
        return server.serve(case, folder, variables, prompts_for(case.model), num_rounds)
    request = {
        "engine": engine.options(case.model, case.ranks, case.config, **case.engine),
        "prompts": prompts_for(case.model),
        "mutants": list(case.mutants),
        "counts": case.load is not None,
        "kills": case.kills,
        "drafts": case.drafts,
        "rounds": num_rounds,
    }
    return engine.serve(request, folder, variables, servers=servers)


def write_record(path: Path, rows: Sequence[Row], seconds: float) -> None:
    """Write what was served as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": "emulated-npu 1",
        "emulated": True,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(seconds, 1),
        "rows": [row.record for row in rows],
    }
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
