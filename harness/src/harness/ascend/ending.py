# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Modules in processes of their own, with a time limit, and what is left of a session when it should have ended."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.accuracy.server import start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Of a busy machine: on a quiet one an engine takes a tenth of it.
LIMIT_SECONDS = 420.0
_KILL_SECONDS = 15.0
_POLL_SECONDS = 0.1


def run_module(
    words: Sequence[str], log: Path, variables: Mapping[str, str], seconds: float = LIMIT_SECONDS
) -> int | None:
    """Run a module in a process of its own and return its exit code; None where the time limit had to end it."""
    with start([sys.executable, "-m", *words], log, variables, stop_seconds=5.0) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def left_behind(session: int | None, seconds: float = _KILL_SECONDS) -> tuple[int, ...]:
    """Return the processes of a session that run still, when those that are being killed have had time to end.

    Args:
        session: its id; None for one that is not known.
        seconds: that time.
    """
    deadline = time.monotonic() + seconds
    while (found := _running(session)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found


def _running(session: int | None) -> tuple[int, ...]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat") if session is not None else ():
        with contextlib.suppress(OSError):
            # The name in brackets may hold anything: state, parent, group and session come after it.
            state, _, _, of_session = (
                status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:4]
            )
            # A zombie does not run.
            if int(of_session) == session and state not in {"Z", "X"}:
                found.append(int(status.parent.name))
    return tuple(sorted(found))
