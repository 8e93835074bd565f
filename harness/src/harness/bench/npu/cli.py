# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: starts pytest in a pinned environment, then writes records, table and plot, and compares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from expert_maps.errors import ExpertMapsError
from expert_maps.files import write_text
from harness.bench.npu import plot, records, report
from harness.bench.npu.cases import TOKENS, VARIANTS, Selection, fitting
from harness.bench.npu.compare import DEFAULT_THRESHOLD, OtherDeviceError, Row, failures
from harness.bench.npu.devices import NoDeviceError, detect, first_line
from harness.bench.npu.families import FAMILIES
from harness.bench.npu.models import MODELS
from harness.bench.npu.points import left_out
from harness.bench.npu.run import (
    Baseline,
    BenchError,
    MissingBaselineError,
    Run,
    load_baseline,
    measure_against,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

app = typer.Typer(add_completion=False)


_RECORDS = Path("harness/bench/records")
_SCRATCH = Path("build/npu_bench")
_SHORT_PACE = {"budget_s": 0.04, "least_rounds": 3}
_FILE_WIDTH = 200


def write(run: Run, found: list[dict[str, Any]], folder: Path) -> None:
    """Write records, page and plot into a folder, which is made if need be.

    Raises:
        FormatError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{folder}: cannot be made: {error.strerror}; expected a folder for the records"
        raise BenchError(msg) from error
    records.write_records(folder / records.FILE, found)
    picture = folder / "npu_ops.svg"
    if plot.can_draw():
        plot.draw(found, picture)
    else:
        typer.echo("no plot: matplotlib is not installed")
    notes = left_out(FAMILIES.values(), run.selection, run.device.kind)
    address = picture.name if plot.can_draw() else None
    write_text(folder / "npu_ops.md", report.page(found, notes, address))
    typer.echo(f"wrote {records.FILE}, npu_ops.md{', npu_ops.svg' if address else ''} to {folder}")


def show(run: Run, found: list[dict[str, Any]], rows: list[Row] | None) -> int:
    """Print tables, what failed, and the comparison; return the exit code."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    for op in report.ops_of(found):
        console.print(report.terminal(report.op_sheet(found, op, "warm")))
    console.print(report.terminal(report.summary_sheet(found)))
    for line in left_out(FAMILIES.values(), run.selection, run.device.kind):
        console.print(f"left out on this device: {line}", highlight=False)
    failed = report.failed_lines(found)
    for line in failed:
        console.print(f"no time: {line}", style="bold red", highlight=False, markup=False)
    if rows is None:
        return 1 if failed else 0
    console.print(report.comparison_table(rows))
    bad = failures(rows)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in bad.items())
    console.print(
        f"{len(rows)} compared: {verdicts or 'none slower, none missing'}", style="bold red" if bad else None
    )
    return 1 if bad or failed else 0


def _chosen(text: str | None, known: Iterable[object], quantity: str) -> tuple[str, ...] | None:
    """Return a list from a comma-separated option.

    Raises:
        BenchError: a name is not known; the known ones are listed.
    """
    if text is None:
        return None
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    allowed = [str(one) for one in known]
    for name in names or ("",):
        if name not in allowed:
            msg = f"--{quantity} has {name!r}; expected some of {', '.join(allowed)}"
            raise BenchError(msg)
    return names


def _selection(
    ops: str | None, models: str | None, tokens: str | None, variants: str | None, *, short: bool
) -> Selection:
    counts = _chosen(tokens, [count for counts in TOKENS.values() for count in counts], "tokens")
    found = _chosen(variants, VARIANTS, "variants")
    return Selection(
        ops=_chosen(ops, FAMILIES, "ops"),
        models=_chosen(models, MODELS, "models"),
        tokens=None if counts is None else tuple(map(int, counts)),
        variants=None if found is None else tuple(name for name in VARIANTS if name in found),
        short=short,
    )


def _run(run: Run, baseline: Baseline | None, output: Path | None) -> int:
    if not any(fitting(family, run.selection, run.device.kind) for family in FAMILIES.values()):
        msg = "the selection has no benchmark that this device is asked for; expected one at least"
        raise BenchError(msg)
    found = measure_against(run, baseline)
    rows = None if baseline is None else baseline.rows(run, found)
    # Only a whole run replaces what is kept: the benchmarks that it lacks would be missed by the next comparison.
    whole = run.selection.is_everything and baseline is None
    write(run, found, output or (_RECORDS if whole else _SCRATCH) / run.device.slug)
    return show(run, found, rows)


@app.command()
def main(
    short: Annotated[bool, typer.Option("--short", help="Few shapes and token counts, for CI.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare with the records that are kept for this device.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Compare with this file or folder of records instead.")
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", help="A median this many times the baseline's fails.", min=1.0)
    ] = DEFAULT_THRESHOLD,
    ops: Annotated[str | None, typer.Option("--ops", help="Only these, separated by commas.")] = None,
    models: Annotated[str | None, typer.Option("--models", help="Only these, likewise.")] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="Only these counts, likewise.")] = None,
    variants: Annotated[str | None, typer.Option("--variants", help="Only warm, cold or pipelined.")] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Timed rounds of each, instead of a time for it.", min=1)
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="npu, cuda or cpu; auto takes the first of them.")
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for records, table and plot.", file_okay=False)
    ] = None,
) -> None:
    """Check and time every routing op of the MoE layer, beside the peers that are here.

    A whole run replaces the records that are kept for the device; any other is written to build/npu_bench. Exit
    code 1: an implementation is wrong, or the comparison fails; 2: bad input, or a baseline of another device.
    """
    try:
        where = detect(device)
        typer.echo(first_line(where))
        sys.stdout.flush()
        selection = _selection(ops, models, tokens, variants, short=short)
        pace: dict[str, Any] = dict(_SHORT_PACE) if short else {}
        if repeats is not None:
            pace |= {"least_rounds": repeats, "most_rounds": repeats}
        wanted = compare or baseline is not None
        path = baseline or _RECORDS / where.slug
        found = load_baseline(path, where, threshold) if wanted else None
        run = Run(where, selection, pace)
        code = _run(run, found, output)
    except MissingBaselineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except (BenchError, ExpertMapsError, NoDeviceError, OtherDeviceError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(code)
