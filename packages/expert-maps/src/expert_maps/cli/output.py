# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Printing: on any code page, at any width, names from files without what a terminal would obey."""

from __future__ import annotations

import codecs
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from expert_maps.cli.notes import hold, release_notes
from expert_maps.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TextIO

# What stands for characters that a code page lacks.
_PLAIN = {
    "→": "->",
    "…": "...",
    "−": "-",
    "–": "-",
    "×": "x",
    "·": "*",
    "≤": "<=",
    "≥": ">=",
    "┏": "+",
    "┓": "+",
    "┗": "+",
    "┛": "+",
    "┳": "+",
    "┻": "+",
    "┡": "+",
    "┩": "+",
    "╇": "+",
    "├": "+",
    "┤": "+",
    "┼": "+",
    "└": "+",
    "┘": "+",
    "┴": "+",
    "┃": "|",
    "│": "|",
    "━": "-",
    "─": "-",
}
_HANDLER = "expert-maps-plain"


def accept_every_character() -> None:
    """Make standard output and error print every text, whatever their code page: a character it lacks is replaced."""
    codecs.register_error(_HANDLER, _replace)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the program
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character) or _escaped(character) for character in found), error.end


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def say(lines: str | Iterable[str], *, err: bool = False, wrap: bool = False) -> None:
    """Print lines, on standard error if asked.

    Args:
        lines: one line, or several.
        err: whether they go to standard error.
        wrap: break lines between words where the terminal is narrower, so that no number is cut in two. Not in a pipe or
            file: what reads it looks for lines.
    """
    release_notes()
    stream = sys.stderr if err else sys.stdout
    width = width_of(stream) if wrap and stream.isatty() else None
    for line in [lines] if isinstance(lines, str) else lines:
        safe = "\n".join(printable(part, None) for part in line.split("\n"))
        stream.write(_encodable(wrapped(safe, width), stream) + "\n")
    stream.flush()


def wrapped(line: str, width: int | None) -> str:
    """Break a line between words, where it is longer than the width."""
    if width is None or len(line) <= width:
        return line
    kept = textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(kept)


def _encodable(text: str, stream: TextIO) -> str:
    """Replace all characters beyond ASCII alike where the code page has not every one: half a frame looks broken."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(_PLAIN.get(character, character) for character in text)
    return text


def width_of(stream: TextIO) -> int | None:
    """Return what COLUMNS says, else the columns of the terminal; None for a pipe or file: no line is too long there."""
    said = os.environ.get("COLUMNS", "")
    if said.isascii() and said.isdigit() and int(said[:9]) > 0:
        return int(said[:9])
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def print_json(document: Mapping[str, object], *, err: bool = False) -> None:
    """Print one JSON object on one line."""
    say(json.dumps(document), err=err)


def error_line(text: str) -> str:
    """Return one line that starts with ``error:``, whatever line breaks the text has."""
    return f"error: {' '.join(text.split())}"


def warn(text: str) -> None:
    """Print one line on standard error that starts with ``warning:``, unless an error follows."""
    note(f"warning: {' '.join(text.split())}")


def note(text: str) -> None:
    """Print one line on standard error, before the results that it is about; not if an error follows."""
    hold(lambda: say(text, err=True))


def as_size(count: int) -> str:
    """Write bytes in the decimal unit that fits, like ``12.3 GB``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        # What the next smaller unit would show as 1000.0 is 1.0 of this one.
        if round(1000 * count / size, 1) >= 1000:  # noqa: PLR2004
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def as_count(value: float) -> str:
    """Write a number of tokens with separators: whole where it is whole or large."""
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:,.2f}"  # noqa: PLR2004
