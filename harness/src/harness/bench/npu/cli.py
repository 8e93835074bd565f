# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Runs pytest on the benchmarks, a process a pass, and makes of its JSON a record, a page, a plot and a comparison."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from expert_maps.errors import ExpertMapsError
from expert_maps.files import read_json, write_text
from harness.bench.npu import compare, pages, results
from harness.record import history, tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.record.schema import RunRecord

app = typer.Typer(add_completion=False)

BENCHMARKS = Path("harness/bench")
RECORDS = BENCHMARKS / "records"
SCRATCH = Path("build/npu_bench")
FILE = "npu_ops.jsonl"
_QUIET = ["-q", "-p", "no:cacheprovider", "--benchmark-only", "--benchmark-quiet", "--disable-warnings"]
_UNDECIDED = 3


class BenchError(Exception):
    """The benchmark cannot run as asked."""


def measure(
    passes: int, words: Sequence[str], name: str = "pass", only: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], bool]:
    """Run pytest so many times; return its JSON of each, and whether all tests passed.

    Args:
        passes: processes.
        words: options of pytest.
        name: of the files of JSON in `SCRATCH`, which are written anew.
        only: names of benchmarks; none for all.

    Raises:
        BenchError: pytest ended before anything was timed.
    """
    if not (BENCHMARKS / "test_npu_ops.py").exists():
        msg = (
            f"there is no {BENCHMARKS}/test_npu_ops.py in {Path.cwd()}; expected to be run in the repository"
        )
        raise BenchError(msg)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    targets = [f"{BENCHMARKS}/test_npu_ops.py::test_op[{one}]" for one in only] or [str(BENCHMARKS)]
    documents, passed = [], True
    for number in range(1, passes + 1):
        path = SCRATCH / f"{name}-{number}.json"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", *targets, *_QUIET, f"--benchmark-json={path}", *words]
        code = subprocess.run(command, check=False).returncode  # noqa: S603 - our own
        # Nothing timed, and it writes none or an empty one.
        if code not in {0, 1} or not path.exists() or not path.stat().st_size:
            msg = f"pytest left with code {code} and timed nothing; what it said stands above"
            raise BenchError(msg)
        document = read_json(path)
        assert isinstance(document, dict)
        documents.append(document)
        passed = passed and code == 0
    return documents, passed


def write(run: RunRecord, folder: Path) -> None:
    """Add a run to a folder's history, and write its page and plot anew.

    Raises:
        FormatError: a file cannot be written.
    """
    history.append(folder / FILE, run)
    address = None
    if importlib.util.find_spec("matplotlib") is not None:
        address = "npu_ops.svg"
        pages.draw(run, folder / address)
    write_text(folder / "npu_ops.md", pages.page(run, address))
    typer.echo(f"appended to {folder / FILE}, wrote npu_ops.md{' and ' + address if address else ''}")


def against(
    kept: RunRecord, run: RunRecord, documents: Sequence[Mapping[str, Any]], words: Sequence[str]
) -> list[compare.Row]:
    """Compare a run with a kept one; what seems slower is measured again, and has to seem so twice."""
    known = results.known(documents)
    rows = compare.compare(run, kept, known)
    if slower := compare.slower_benchmarks(rows):
        typer.echo(f"{len(slower)} seem slower than the baseline; measuring them again")
        again, _ = measure(compare.PASSES, words, "again", slower)
        rows = compare.confirmed(rows, compare.compare(results.record(again), kept, known))
    return rows


def show(run: RunRecord, rows: Sequence[compare.Row] | None) -> None:
    """Print the tables, what failed, and the comparison."""
    tables.show(*(pages.of_op(run, op, "warm") for op in run.performance["abouts"]), pages.summary(run))
    tables.show(*(Text(f"no time: {name}: {text}", "bold red") for name, text in run.proof["faults"].items()))
    if rows is not None:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in compare.failures(rows).items())
        tables.show(pages.comparison(rows), f"{len(rows)} compared: {counts or 'none slower, none missing'}")


def _kept(path: Path | None, device: str) -> RunRecord:
    if path is None:
        from harness.bench.npu.devices import NoDeviceError, detect  # loads torch

        try:
            path = RECORDS / detect(device).slug / FILE
        except NoDeviceError as error:
            raise BenchError(str(error)) from error
    if not path.exists():
        msg = f"there is no baseline {path}; a run with --record makes one, and it is kept in the repository"
        raise BenchError(msg)
    return history.read(path)[-1]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def main(
    context: typer.Context,
    short: Annotated[bool, typer.Option("--short", help="Few shapes and token counts, for CI.")] = False,
    passes: Annotated[
        int | None, typer.Option("--passes", help="Processes; 5 with --compare and --record, else 1.", min=1)
    ] = None,
    compared: Annotated[
        bool, typer.Option("--compare", help="Compare with the newest record that is kept for this device.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Compare with the newest record of this file instead.")
    ] = None,
    record: Annotated[
        bool,
        typer.Option("--record", help=f"Add the run to the history in {RECORDS}, and write its page anew."),
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="npu, cuda or cpu; auto takes the first of them.")
    ] = "auto",
) -> None:
    """Check and time every op of the MoE layer, beside the peers that are here.

    What else is given goes to pytest: -k "gating and qwen3-235b" chooses. Without --record nothing that git knows is
    touched: all goes to build/npu_bench. Exit code 1: an implementation is wrong, or the comparison fails; 2: bad input, no
    baseline, or one of another device; 3: something is slower, but with another torch or compiler.
    """
    words = [f"--npu-device={device}", *(["--npu-short"] if short else []), *context.args]
    wanted = compared or baseline is not None
    try:
        kept = _kept(baseline, device) if wanted else None
        documents, passed = measure(passes or (compare.PASSES if wanted or record else 1), words)
        run = results.record(documents, short=short, words=context.args)
        rows = None if kept is None else against(kept, run, documents, words)
        write(run, (RECORDS if record else SCRATCH) / run.name)
    except (BenchError, ExpertMapsError, compare.NotComparableError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    show(run, rows)
    if not passed or (rows is not None and compare.failures(rows)):
        raise typer.Exit(1)
    if rows is not None and any(row.verdict == "undecided" for row in rows):
        raise typer.Exit(_UNDECIDED)


if __name__ == "__main__":
    app()
