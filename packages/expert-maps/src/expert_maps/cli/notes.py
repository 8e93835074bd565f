# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Notes on standard error about what was read; an error is one line alone, so they wait until there can be none."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Generator

_held: ContextVar[list[str] | None] = ContextVar("held", default=None)


def note(text: str) -> None:
    """Print a line on standard error; within `held_notes`, when it ends well."""
    held = _held.get()
    if held is None:
        typer.echo(text, err=True)
    else:
        held.append(text)


def release_notes() -> None:
    """Print the notes that are held, before the results that they are about."""
    held = _held.get()
    while held:
        typer.echo(held.pop(0), err=True)


@contextmanager
def held_notes() -> Generator[None]:
    """Hold notes back until the block ends, and drop them if it raises."""
    token = _held.set([])
    try:
        yield
        release_notes()
    finally:
        _held.reset(token)
