# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One run of the command line: streams that take every character, and an exit code."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from expert_maps.cli.output import accept_every_character, error_line, say

if TYPE_CHECKING:
    import typer

# As of a program that the signal of a closed pipe ends: `| head` has read what it wanted.
CLOSED_PIPE = 141
BAD_OUTPUT = 2


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code, when all that it printed has left the process.

    Args:
        arguments: those after the program's name; None for `sys.argv`.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    accept_every_character()
    from expert_maps.cli.app import app

    try:
        code = _run(app, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        _drop_output()
        return CLOSED_PIPE
    except OSError as error:
        _drop_output()
        say(error_line(f"standard output cannot be written: {error.strerror or error}"), err=True)
        return BAD_OUTPUT
    return code


def _run(app: typer.Typer, arguments: list[str] | None) -> int:
    try:
        code: object = app(args=arguments, standalone_mode=False)
    except SystemExit as end:  # completion
        code = end.code
    return code if isinstance(code, int) else int(code is not None)


def _drop_output() -> None:
    """Let what is still buffered go nowhere, so that Python's own end does not complain of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
