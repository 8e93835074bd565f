# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Work that may take long: a bar on a terminal, and Ctrl-C that ends it at once.

The work runs in a thread: the compiled planner looks at no signals, but the thread that waits for it does.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    Progress = Callable[[int, int], object]

Result = TypeVar("Result")

# Work that is over within this many seconds shows no bar.
_QUIET_SECONDS = 1.0
_REFRESH_SECONDS = 0.1


def work(what: str, function: Callable[[Progress], Result], screen: TextIO | None = None) -> Result:
    """Return what the function returns; after a second of work a bar is drawn, on a terminal.

    Args:
        what: what is being done, before the bar.
        function: is given a callback (done, total) for how far it is.
        screen: where the bar is drawn; None for standard error.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    state: dict[str, int] = {}

    def advance(done: int, total: int) -> None:
        state.update(completed=done, total=total)

    def call() -> None:
        try:
            results.append(function(advance))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(_QUIET_SECONDS)
    stream = sys.stderr if screen is None else screen
    if thread.is_alive() and stream.isatty():
        _draw(what, thread, state, stream)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _draw(what: str, thread: threading.Thread, state: dict[str, int], stream: TextIO) -> None:
    """Draw a bar until the thread ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(file=stream),
        transient=True,
    )
    task = bar.add_task(what, total=None)
    with bar:
        while thread.is_alive():
            bar.update(task, completed=state.get("completed", 0), total=state.get("total"))
            thread.join(_REFRESH_SECONDS)
