# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One run of the command line: streams that take every character, and an exit code."""

from __future__ import annotations

import os
import sys

from expert_maps.cli.output import accept_every_character, error_line, say

# As a program that the signal of a closed pipe ends: `| head` has read what it wanted.
CLOSED_PIPE = 141


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; whatever is left to print has been printed.

    Args:
        arguments: those after the program's name; None for `sys.argv`.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    accept_every_character()
    from expert_maps.cli.app import app

    try:
        code = _code_of(lambda: app(args=arguments))
        _flush()
    except BrokenPipeError:
        _drop_output()
        return CLOSED_PIPE
    except OSError as error:
        _drop_output()
        say(error_line(f"cannot print: {error.strerror or error}"), err=True)
        return 2
    return code


def _code_of(call: object) -> int:
    try:
        call()  # type: ignore[operator]
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _drop_output() -> None:
    """Let what is still buffered go nowhere, so that Python's own end does not complain of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
