# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How good and how fast the planner is, beside vLLM's and vllm-ascend's.

python -m harness.bench.planner [--record FILE] [--table FILE] [--plot FILE] [--vllm-ascend WHEEL] [--loads FOLDER]

vLLM's policy is compared where vLLM is installed, vllm-ascend's where its wheel is named.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.files import write_text
from harness.bench.planner import ascend, pages
from harness.bench.planner.first import first_calls
from harness.bench.planner.peers import FAST, PRECISE, VLLM, Peer, own_peers, vllm
from harness.bench.planner.problems import family_cases, growth_cases, quality_cases
from harness.bench.planner.studies import ESFT_FILE, incremental, over_time
from harness.bench.planner.timing import Outcome, Pace, compare
from harness.record import history
from harness.record.provenance import describe
from harness.record.tables import Sheet, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.bench.planner.problems import Problem


class Part(str, Enum):
    """A part of the benchmark."""

    quality = "quality"
    families = "families"
    growth = "growth"
    first = "first"
    incremental = "incremental"
    time = "time"


@dataclass
class Run:
    """What is compared, and what came of it.

    Attributes:
        peers: the policies.
        pace: how often each is timed.
        source: vllm-ascend's wheel or folder.
        loads: folder of recorded loads.
        absent: what was left out, a line each.
        extra: name → version of what is not installed.
        sheets: tables.
        records: rows of the record, one a case.
        outcomes: what the plot shows.
    """

    peers: list[Peer]
    pace: Pace
    source: Path | None = None
    loads: Path | None = None
    absent: list[str] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    sheets: list[Sheet] = field(default_factory=list)
    records: list[dict[str, object]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def some(self, *names: str) -> list[Peer]:
        """Return those of the policies that are here."""
        return [peer for peer in self.peers if peer.name in names]

    def recorded(self, what: str) -> Path | None:
        """Return the file of recorded loads; where it is not there, note what is left out."""
        file = None if self.loads is None else self.loads / ESFT_FILE
        if file is None or not file.exists():
            self.absent.append(f"{what}: --loads names no folder with {ESFT_FILE}")
            return None
        return file

    def compare(self, problems: Iterable[Problem], peers: Sequence[Peer]) -> list[Outcome]:
        """Compare policies on problems, and keep a record of each."""
        outcomes = [compare(problem, peers, self.pace) for problem in problems]
        self.records += map(pages.case_record, outcomes)
        return outcomes

    def keep(self, benchmark: str, **results: object) -> None:
        """Keep a record."""
        self.records.append({"benchmark": pages.record_name(benchmark), **results})


def gather(source: Path | None, loads: Path | None, pace: Pace) -> Run:
    """Find the policies that can be compared here."""
    run = Run(own_peers(), pace, source, loads)
    if importlib.util.find_spec("vllm") is not None:
        # Importing vLLM talks about the machine.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        run.peers.append(vllm())
    else:
        run.absent.append("vLLM's policy: vLLM is not installed")
    if source is None:
        run.absent.append("vllm-ascend's policies: no --vllm-ascend was given")
    else:
        peers, version = ascend.load_policies(source)
        run.peers += peers
        run.extra["vllm_ascend"] = version
    return run


def measure_quality(run: Run) -> None:
    """Compare all policies on the cases of the plot."""
    planners = [peer for peer in run.peers if peer.name != ascend.SWIFT]
    run.outcomes = run.compare(quality_cases(), planners)
    run.sheets += pages.quality_sheets(run.outcomes)


def measure_families(run: Run) -> None:
    """Compare what the goals are about on four families of loads."""
    cases = family_cases(run.recorded("recorded loads among the families"))
    run.sheets += pages.family_sheets(run.compare(cases, run.some(FAST, PRECISE, VLLM)))


def measure_growth(run: Run) -> None:
    """Time some policies on growing problems."""
    for title, problems in growth_cases().items():
        outcomes = run.compare(problems, run.some(FAST, PRECISE, VLLM))
        run.sheets.append(pages.growth_sheet(title, outcomes))


def measure_first(run: Run) -> None:
    """Time the first plan of a process."""
    names = [peer.name for peer in run.some(PRECISE, "deepseek", VLLM, ascend.FLASHLB)]
    seconds = first_calls(names, run.source, min(3, run.pace.repeats))
    run.sheets.append(pages.first_sheet(seconds))
    run.keep("first plan of a process, 58×256 → 288/32", policies=seconds)


def measure_incremental(run: Run) -> None:
    """Plan again after a shift of the load."""
    replans, sigma = incremental(run.peers, run.pace)
    run.sheets.append(pages.replan_sheet(replans, sigma))
    run.keep("shifted load, 58×256 → 288/32", sigma=sigma, policies={one.name: vars(one) for one in replans})


def measure_time(run: Run) -> None:
    """Score plans on later windows of recorded loads."""
    file = run.recorded("later windows")
    if file is None:
        return
    scores = over_time(file, run.peers, run.pace)
    run.sheets.append(pages.time_sheet(scores))
    policies = {
        name: {task: {"balancedness": score, "median_ms": ms} for task, (score, ms) in found.items()}
        for name, found in scores.items()
    }
    run.keep("later windows of ESFT's tasks, 26×64 → 80/16", policies=policies)


_MEASURES = {
    Part.quality: measure_quality,
    Part.families: measure_families,
    Part.growth: measure_growth,
    Part.first: measure_first,
    Part.incremental: measure_incremental,
    Part.time: measure_time,
}


def main(
    record: Annotated[Path | None, typer.Option("--record", help="Append the run to this file.")] = None,
    table: Annotated[Path | None, typer.Option("--table", help="Write a page of Markdown.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write gap against time, as SVG or PNG.")
    ] = None,
    loads: Annotated[Path | None, typer.Option("--loads", help="Folder of recorded loads.")] = None,
    vllm_ascend: Annotated[
        Path | None,
        typer.Option("--vllm-ascend", help="Wheel of vllm-ascend, or a folder of it.", exists=True),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed rounds.", min=1)] = 9,
    part: Annotated[
        list[Part] | None, typer.Option("--part", help="Only this part; may be repeated.")
    ] = None,
) -> None:
    """Compare planners, print the tables, and write what is asked for."""
    run = gather(vllm_ascend, loads, Pace(repeats))
    for one in part or list(Part):
        _MEASURES[one](run)
    provenance = describe(extra=run.extra)
    show(*run.sheets, *(f"left out: {line}" for line in run.absent))
    if plot is not None and run.outcomes:
        from harness.bench.planner.plot import draw

        draw(run.outcomes, plot)
        typer.echo(f"wrote {plot}")
    if table is not None:
        address = None if plot is None else Path(os.path.relpath(plot, table.parent)).as_posix()
        write_text(table, pages.page(run.sheets, provenance, run.absent, address))
        typer.echo(f"wrote {table}")
    settings = {"repeats": repeats, "parts": [one.value for one in part or Part]}
    history.keep(record, "planner", "planner", {"rows": run.records}, settings, provenance)


if __name__ == "__main__":
    typer.run(main)
