# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m harness.peers`: fetch, run, compare with what is expected; exit 1 on any surprise."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.contract.fetching import ContractError
from harness.peers.expected import COUNTS, EXPECTED
from harness.peers.judge import KINDS, Verdict, judge
from harness.peers.page import render
from harness.peers.run import RunError, execute
from harness.peers.suites import RUNS, Run

if TYPE_CHECKING:
    from collections.abc import Iterable

_PAGE = Path("harness/peers.md")
_WritePage = Annotated[bool, typer.Option("--write-page", help="Write the page in place of comparing it.")]


def main(
    folder: Annotated[Path, typer.Option("--folder", help="Where downloads are kept.")] = Path("build/peers"),
    only: Annotated[
        str | None, typer.Option("--only", help="Runs whose name has this in it; all if not given.")
    ] = None,
    page: Annotated[Path, typer.Option("--page", help="The page that is compared or written.")] = _PAGE,
    write_page: _WritePage = False,  # noqa: FBT002 - a flag of the command line
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at the same time.")] = 2,
) -> None:
    """Run the tests that vLLM and vllm-ascend carry with this project's functions in place of theirs."""
    runs = [run for run in RUNS if only is None or only in run.name]
    if not runs:
        typer.echo(
            f"error: --only is {only!r}; expected a part of {', '.join(run.name for run in RUNS)}", err=True
        )
        raise typer.Exit(2)
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda run: _try(run, folder), runs))
    results = [(run, verdicts) for run, (verdicts, _, _) in zip(runs, done, strict=True)]
    _print(zip(runs, done, strict=True))
    problems = [problem for _, found, _ in done for problem in found]
    if only is None and not problems:
        problems += _compare(page, render(results, EXPECTED), write=write_page)
    for problem in problems:
        typer.echo(f"FAILED {problem}", err=True)
    typer.echo(
        f"{sum(verdict.passed for _, of_run in results for verdict in of_run)} pass; {len(problems)} problems"
    )
    if problems:
        raise typer.Exit(1)


def _try(run: Run, folder: Path) -> tuple[list[Verdict], list[str], float]:
    start = time.monotonic()
    try:
        verdicts = judge(run, execute(run, folder), EXPECTED, COUNTS)
    except (ContractError, RunError) as error:
        return [], [str(error)], time.monotonic() - start
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    return verdicts, problems, time.monotonic() - start


def _compare(page: Path, text: str, *, write: bool) -> list[str]:
    if write:
        page.write_text(text, encoding="utf-8")
        return []
    found = page.read_text(encoding="utf-8") if page.is_file() else ""
    return [] if found == text else [f"{page} is stale; expected what --write-page writes"]


def _print(results: Iterable[tuple[Run, tuple[list[Verdict], list[str], float]]]) -> None:
    table = Table(title="peers' own tests with ours in place of theirs", title_justify="left")
    for index, column in enumerate(("tests of", "suite", "tests", "pass", *KINDS, "problems")):
        table.add_column(column, justify="left" if index < 2 else "right")  # noqa: PLR2004 - the first two are names
    for run, (verdicts, _, seconds) in results:
        for verdict in verdicts:
            name = f"{verdict.suite}: {verdict.variant}" if verdict.variant else verdict.suite
            numbers = [verdict.count, verdict.passed, *(verdict.others[kind] for kind in KINDS)]
            table.add_row(run.name, name, *map(str, numbers), str(len(verdict.problems)))
        table.add_row(run.name, f"{seconds:.0f} s", end_section=True)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
