# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m harness.contract [--all] [--newest] [--wheels FOLDER]`: fetch, compare, report; exit 1 on any problem.

Two contracts: the plugin's calls against torch_npu's wheels, and its hooks and the table of releases against the
source of vLLM and vllm-ascend.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import vllm_ascend_moe
from harness.contract.calls import find_calls
from harness.contract.hooks import Report, check_release, fetch_releases, wanted
from harness.contract.static import check_calls, check_limits, check_twins
from harness.contract.wheels import ContractError, Wheel, fetch, may_be_run, read
from vllm_ascend_moe.npu_ops.ops import OPS

_TIMEOUT_S = 300


def main(
    *,
    wheels: Annotated[Path, typer.Option("--wheels", help="Where downloads are kept.")] = Path(
        "build/torch_npu"
    ),
    everything: Annotated[
        bool,
        typer.Option("--all", help="Every row of the table, and every vLLM; CI takes those that are served."),
    ] = False,
    newest: Annotated[
        bool,
        typer.Option(
            "--newest",
            help="Also the newest torch_npu: its schemas are read, nothing of it is run unless it is pinned.",
        ),
    ] = False,
) -> None:
    """Check the plugin's calls against torch_npu's wheels, and its hooks and table against vLLM and vllm-ascend."""
    releases = wanted(everything=everything)
    try:
        paths = fetch(wheels, everything=everything, newest=newest)
        versions = [read(path) for path in paths]
        sources = fetch_releases(wheels, releases)
        reports = [check_release(path, release) for path, release in zip(sources, releases, strict=True)]
    except ContractError as error:
        typer.echo(f"FAILED {error}", err=True)
        raise typer.Exit(1) from error
    problems = _report_calls(paths, versions) + _report_hooks(reports)
    for problem in problems:
        typer.echo(f"FAILED {problem}", err=True)
    typer.echo(
        f"torch_npu, vLLM and vllm-ascend were not imported; nothing ran on an NPU. {len(problems)} problems"
    )
    if problems:
        raise typer.Exit(1)


def _report_calls(paths: list[Path], versions: list[Wheel]) -> list[str]:
    """Compare the calls with torch_npu's wheels, print a table, and return the problems."""
    calls = find_calls(Path(vllm_ascend_moe.__file__).parent)
    problems = check_calls(calls, versions) + check_twins(OPS, versions) + check_limits(versions)
    never = sorted(set(OPS) - {call.name for call in calls})
    problems += [f"{name} is never called; expected at least one call site" for name in never]
    table = _table(
        f"{len(calls)} call sites of {len(OPS)} ops",
        ("torch_npu", "ops found", "calls compared on fake tensors", "problems"),
    )
    for path, wheel in zip(paths, versions, strict=True):
        compared = "not run: no pinned wheel"
        if may_be_run(path):
            number, found = _run_fake(path, wheel)
            compared = str(number)
            problems += found
        own = [problem for problem in problems if f"torch_npu {wheel.version}" in problem]
        table.add_row(wheel.version, str(len(OPS.keys() & wheel.schemas.keys())), compared, str(len(own)))
    Console().print(table)
    return problems


def _report_hooks(reports: list[Report]) -> list[str]:
    """Print a table of the hooks in vLLM's and vllm-ascend's source, and return the problems."""
    table = _table(
        "hooks and facts in the source of releases",
        ("release", "hooks fit", "layer's calls", "options found", "facts agree", "problems"),
    )
    for report in reports:
        table.add_row(*report.row)
    Console().print(table)
    for report in reports:
        for note in report.notes:
            typer.echo(note)
    return [problem for report in reports for problem in report.problems]


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _run_fake(path: Path, wheel: Wheel) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "harness.contract.fake", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603 - no shell, this interpreter
    except subprocess.TimeoutExpired:
        return 0, [f"torch_npu {wheel.version}: fake tensors took more than {_TIMEOUT_S} s"]
    try:
        result = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return 0, [f"torch_npu {wheel.version}: fake tensors could not run: {last}"]
    if not result["compared"] and not result["problems"]:
        return 0, [f"torch_npu {wheel.version}: no call was compared"]
    return result["compared"], result["problems"]


if __name__ == "__main__":
    typer.run(main)
