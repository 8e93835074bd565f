# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a command writes: never over its own input, and it says what it did."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.files import describe, write_bytes

if TYPE_CHECKING:
    from expert_maps.cli.options import Inputs


@dataclass(frozen=True)
class Output:
    """Where `--output` points, checked before any work is done.

    Attributes:
        path: the file, ``-`` for standard output, or None: nothing is written.
        replaces: whether a file of that name is there already.
    """

    path: Path | None
    replaces: bool = False

    @property
    def is_stdout(self) -> bool:
        """Whether standard output is taken; what else is to be said goes to standard error."""
        return self.path is not None and os.fspath(self.path) == "-"

    @property
    def name(self) -> str | None:
        """What `--json` calls it."""
        return None if self.path is None else str(self.path)

    @property
    def where(self) -> str:
        """What messages call it."""
        return "standard output" if self.is_stdout else str(self.path)

    @property
    def line(self) -> str:
        """What is said of it afterwards."""
        if self.path is None:
            return "nothing written: give --output FILE"
        return f"written: {self.where}{' (replaced)' if self.replaces else ''}"

    def write(self, content: str | bytes) -> None:
        """Write it, whole or not at all; nowhere if nothing was asked for.

        Raises:
            FormatError: it cannot be written.
        """
        if self.path is None:
            return
        data = content.encode() if isinstance(content, str) else content
        if self.is_stdout:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        else:
            write_bytes(self.path, data)


def check_output(
    path: Path | None,
    inputs: Inputs,
    *,
    endings: tuple[str, ...] = (".json",),
    json: bool = False,
    name: str = "--output",
) -> Output:
    """Return where to write, or refuse a file that is read by the same command.

    Args:
        path: what `--output` says.
        inputs: what is read, by the name of its argument or option.
        endings: how the file's name may end.
        json: whether `--json` prints to standard output too.
        name: what it is called.

    Raises:
        FormatError: a wrong ending; the same file as an input, by whatever name or link; or standard output twice.
    """
    if path is None:
        return Output(None)
    if os.fspath(path) == "-":
        if json:
            msg = f"{name} is '-' and --json prints to standard output too; expected one of them"
            raise FormatError(msg)
        return Output(path)
    for source, given in inputs.items():
        paths = [] if given is None else [given] if isinstance(given, Path | str) else given
        if any(_is_same(path, each) for each in paths):
            msg = f"{name} {path} is the file that is read as {source}; expected another, or it would be lost"
            raise FormatError(msg)
    if not path.name.endswith(endings):
        msg = f"{name} is {str(path)!r}; expected a name that ends in {' or '.join(endings)}"
        raise FormatError(msg)
    if not path.parent.is_dir():
        msg = f"{describe(path)}: there is no folder {path.parent}; create it first"
        raise FormatError(msg)
    return Output(path, path.exists())


def _is_same(path: Path, other: Path | str) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # one of them is not there
        return False
