# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Files: errors in one line, and nothing half-written."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expert_maps import limits
from expert_maps._gzip import unpack, unpack_once
from expert_maps._json import parse_json
from expert_maps._replace import remove_abandoned as remove_beside
from expert_maps._replace import replace
from expert_maps.errors import FormatError, printable

if TYPE_CHECKING:
    from io import FileIO
    from typing import TypeAlias

__all__ = [
    "AnyPath",
    "Source",
    "describe",
    "parse_json",
    "printable",
    "read_bytes",
    "read_json",
    "remove_abandoned",
    "unpack",
    "unpack_once",
    "write_bytes",
    "write_text",
]

_PIECE = 2**20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (lambda _mode: True, "no regular file"),
)
# Of a name; the kernel takes no longer one.
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Source:
    """What stands for a file that has been read already, such as standard input.

    Attributes:
        name: what messages call it.
        content: its bytes.
    """

    name: str
    content: bytes


AnyPath: TypeAlias = "str | os.PathLike[str] | Source"


def describe(path: AnyPath) -> str:
    """Return the path as given, but nothing that a terminal obeys; a bare file name says in which folder it was looked for."""
    if isinstance(path, Source):
        return printable(path.name, _LONGEST_PATH)
    text = printable(os.fspath(path), _LONGEST_PATH)
    return text if os.path.dirname(text) else f"{text} (in {Path.cwd()})"  # noqa: PTH120 - keeps "./"


def read_bytes(path: AnyPath, most: int = limits.MAX_FILE_BYTES) -> bytes:
    """Read a whole file; only a regular one, and never more than so many bytes of it.

    Args:
        path: the file, or a link to it.
        most: bytes that it may have.

    Raises:
        FormatError: absent, a folder, a device or pipe, too large, or unreadable.
    """
    if isinstance(path, Source):
        _refuse_size(path, len(path.content), most)
        return path.content
    if not os.fspath(path):
        msg = "the file name is empty; expected a path"
        raise FormatError(msg)
    try:
        # Opening a device can do something, so look first; then once more at what was opened.
        _refuse_kind(path, Path(path).stat().st_mode)
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as stream:  # noqa: PTH123 - with flags
            found = os.fstat(stream.fileno())
            _refuse_kind(path, found.st_mode)
            _refuse_size(path, found.st_size, most)
            return _read(path, stream, found.st_size, most)
    except FileNotFoundError as error:
        msg = f"{describe(path)}: no such file"
        raise FormatError(msg) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        if isinstance(error, FormatError):
            raise
        msg = f"{describe(path)}: cannot be read: {getattr(error, 'strerror', None) or error}"
        raise FormatError(msg) from error


def _refuse_kind(path: AnyPath, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next(name for is_kind, name in _KINDS if is_kind(mode))
    msg = f"{describe(path)}: is {kind}; expected a file"
    raise FormatError(msg)


def _refuse_size(path: AnyPath, size: int, most: int) -> None:
    if size > most:
        msg = f"{describe(path)}: has {size} bytes; expected at most {most}"
        raise FormatError(msg)


def _read(path: AnyPath, stream: FileIO, size: int, most: int) -> bytes:
    """Read to the end, which need not be where it was said to be."""
    pieces: list[bytes] = []
    total = 0
    while piece := stream.read(size + 1 if not pieces else _PIECE):
        pieces.append(piece)
        total += len(piece)
        if total > most:
            msg = f"{describe(path)}: has more than {most} bytes; expected at most so many"
            raise FormatError(msg)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_json(path: AnyPath) -> object:
    """Read a JSON file, strictly; see `parse_json`.

    Raises:
        FormatError: unreadable, or not JSON; the line and column are named.
    """
    return parse_json(read_bytes(path, limits.MAX_JSON_BYTES), describe(path))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all, and to the disk; a file that is there is replaced in one step.

    A replaced file keeps its permissions, but none to run as another user. Killed at any moment the process leaves the
    old file or the new one, and next to nothing beside it: what could stay is removed by the next to write this file.

    Raises:
        FormatError: the folder is missing or unwritable, or the path names something else than a file.
    """
    if not os.fspath(path):
        msg = "the output file name is empty; expected a path"
        raise FormatError(msg)
    try:
        # Through a link to the file that it names, so that the link stays a link.
        target = Path(path).resolve()
        _refuse_target(path, target)
        replace(target, content)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        if isinstance(error, FormatError):
            raise
        msg = f"{describe(path)}: cannot be written: {getattr(error, 'strerror', None) or error}"
        raise FormatError(msg) from error


def remove_abandoned(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed while they wrote a file left beside it; a folder that is absent has none."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        remove_beside(Path(path).resolve())


def _refuse_target(path: str | os.PathLike[str], target: Path) -> None:
    if target.is_dir():
        msg = f"{describe(path)}: is a folder; expected a file name"
        raise FormatError(msg)
    if target.is_symlink():  # what resolve() leaves a link is a loop; before Python 3.13 it raises
        msg = f"{describe(path)}: cannot be written: the link leads to itself"
        raise FormatError(msg)
    if target.exists() and not target.is_file():
        msg = f"{describe(path)}: exists and is not a regular file"
        raise FormatError(msg)
    if not target.parent.is_dir():
        msg = f"{describe(path)}: there is no folder {target.parent}; create it first"
        raise FormatError(msg)
