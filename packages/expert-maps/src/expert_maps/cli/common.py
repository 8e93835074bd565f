# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the subcommands share: errors, output, progress and common options."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expert_maps import limits
from expert_maps.cli.notes import held_notes
from expert_maps.errors import ExpertMapsError, FormatError, PlacementError
from expert_maps.files import Source, describe
from expert_maps.formats import read_placement

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from expert_maps.files import AnyPath
    from expert_maps.placement import Placement

OK, CHECK_FAILED, BAD_INPUT = 0, 1, 2

# Work that is over within this many seconds shows no bar.
_QUIET_SECONDS = 1.0

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A vllm-ascend expert map (JSON).")]
AllowUnevenOption = Annotated[
    bool, typer.Option("--allow-uneven", help="Accept ranks with unequally many slots.")
]
AllowDuplicatesOption = Annotated[
    bool, typer.Option("--allow-duplicates", help="Accept an expert twice on a rank.")
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        help="The gap at which `balanced` stops, a fraction up to 1; 0.0004 if not given. Looser is faster.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Where to write the vllm-ascend expert map; the name ends in .json."),
]

# Tables keep their columns in a pipe or a log, where no terminal tells its width.
console = Console(soft_wrap=False)


def as_input(path: str | os.PathLike[str]) -> AnyPath:
    """Return what is read under this name: for ``-`` standard input, whole, else the path itself.

    Raises:
        FormatError: standard input is larger than any file may be.
    """
    if os.fspath(path) != "-":
        return path
    content = sys.stdin.buffer.read(limits.MAX_FILE_BYTES + 1)
    if len(content) > limits.MAX_FILE_BYTES:
        msg = f"standard input has more than {limits.MAX_FILE_BYTES} bytes; expected at most so many"
        raise FormatError(msg)
    return Source("standard input", content)


@contextmanager
def bad_input() -> Generator[None]:
    """Turn an error of this package into one line on standard error and exit code 2."""
    try:
        with held_notes():
            yield
    except ExpertMapsError as error:
        typer.echo(f"error: {_one_line(error)}", err=True)
        raise typer.Exit(BAD_INPUT) from error
    except MemoryError as error:
        typer.echo("error: not enough memory for counts this large", err=True)
        raise typer.Exit(BAD_INPUT) from error


def _one_line(error: ExpertMapsError) -> str:
    text = f"invalid placement: {error.summary}" if isinstance(error, PlacementError) else str(error)
    return " ".join(text.split())


def read_map(
    path: str | os.PathLike[str], *, allow_uneven: bool = False, allow_duplicates: bool = False
) -> Placement:
    """Read a placement; an invalid one is an input error that names the file."""
    try:
        return read_placement(path, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates)
    except PlacementError as error:
        msg = f"{describe(path)}: {_one_line(error)}"
        raise ExpertMapsError(msg) from error


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON object on one line."""
    typer.echo(json.dumps(document))


@contextmanager
def progress_bar(what: str, stderr: Console | None = None) -> Generator[Callable[[int, int], None]]:
    """Yield a callback (done, total); after a second of work it draws a bar on standard error.

    Only on a terminal: a log has no use for a bar.
    """
    screen = stderr or Console(stderr=True)
    started = time.monotonic()
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    )
    task = bar.add_task(what, total=None)

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        is_slow = done < total and time.monotonic() - started > _QUIET_SECONDS
        if is_slow and screen.is_terminal and not bar.live.is_started:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
