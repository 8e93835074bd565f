# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The command line `expert-maps`: one file per subcommand.

Nothing is imported here but what Python itself has: from `main` on, Ctrl-C ends the program without a traceback, also
while NumPy is being loaded.
"""

from __future__ import annotations

import os
import signal

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        from expert_maps.cli.entry import run

        code = run()
        # What is left is Python's own end, which Ctrl-C would only litter with tracebacks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        # At once, without Python's own end: a second Ctrl-C must not print what it interrupts. Files are written whole
        # or not at all, and the planner may still be at work in a thread.
        os._exit(_INTERRUPTED)
    raise SystemExit(code)
