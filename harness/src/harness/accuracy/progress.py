# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How far a long run is: a bar with rate and remaining time; a line now and then where there is no terminal."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Task

_LINE_SECONDS = 30.0


class _Rate(ProgressColumn):
    """Answers a second."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


@contextlib.contextmanager
def progress(console: Console, label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show progress for the time of a `with` block; call what is yielded after each step."""
    if not console.is_terminal:
        yield _lines(console, label, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def _lines(console: Console, label: str, total: int) -> Callable[[], None]:
    start = last = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last < _LINE_SECONDS and done < total:
            return
        last = now
        rate = done / max(now - start, 1e-9)
        rest = (total - done) / rate
        console.print(f"{label}: {done}/{total}, {rate:.1f}/s, {rest:.0f} s remaining", highlight=False)

    return advance
