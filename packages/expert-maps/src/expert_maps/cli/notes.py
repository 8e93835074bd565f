# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Notes on standard error about what was read; an error is one line alone, so they wait until there can be none."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_held: ContextVar[list[Callable[[], None]] | None] = ContextVar("held", default=None)


def hold(say: Callable[[], None]) -> None:
    """Say something: at once, or within `held_notes` when the first results are printed, or when it ends well."""
    held = _held.get()
    if held is None:
        say()
    else:
        held.append(say)


def release_notes() -> None:
    """Say what is held, before the results that it is about."""
    held = _held.get()
    if held:
        notes, held[:] = list(held), []
        for say in notes:
            say()


@contextmanager
def held_notes() -> Generator[None]:
    """Hold notes back until the block ends, and drop them if it raises."""
    token = _held.set([])
    try:
        yield
        release_notes()
    except typer.Exit:  # a check that has failed is no error
        release_notes()
        raise
    finally:
        _held.reset(token)
