# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Files: errors in one line, and nothing half-written."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expert_maps import limits
from expert_maps.errors import FormatError

if TYPE_CHECKING:
    from typing import TypeAlias


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
    """Return the path as given; a bare file name says in which folder it was looked for."""
    if isinstance(path, Source):
        return path.name
    text = os.fspath(path)
    return text if os.path.dirname(text) else f"{text} (in {Path.cwd()})"  # noqa: PTH120 - keeps "./"


def read_bytes(path: AnyPath) -> bytes:
    """Read a whole file.

    Raises:
        FormatError: absent, a folder, or unreadable.
    """
    if isinstance(path, Source):
        return path.content
    if not os.fspath(path):
        msg = "the file name is empty; expected a path"
        raise FormatError(msg)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        msg = f"{describe(path)}: no such file"
        raise FormatError(msg) from error
    except IsADirectoryError as error:
        msg = f"{describe(path)}: is a folder; expected a file"
        raise FormatError(msg) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        msg = f"{describe(path)}: cannot be read: {getattr(error, 'strerror', None) or error}"
        raise FormatError(msg) from error


def unpack(content: bytes, name: str = "the file") -> bytes:
    """Return what a gzip file holds; other content as it is.

    Raises:
        FormatError: damaged, or larger unpacked than any file may be.
    """
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            unpacked = stream.read(limits.MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{name}: cannot be unpacked: {error}"
        raise FormatError(msg) from error
    if len(unpacked) > limits.MAX_FILE_BYTES:
        msg = f"{name}: unpacks to more than {limits.MAX_FILE_BYTES} bytes; expected at most so many"
        raise FormatError(msg)
    return unpacked


def read_json(path: AnyPath) -> object:
    """Read a JSON file, strictly: UTF-8, no NaN, no key twice in one object.

    Raises:
        FormatError: unreadable, or not JSON; the line and column are named.
    """
    content = read_bytes(path)
    try:
        return json.loads(
            content.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_repeated_keys,
        )
    except UnicodeDecodeError as error:
        msg = f"{describe(path)}: not UTF-8 text at byte {error.start}; expected a JSON file"
        raise FormatError(msg) from error
    except json.JSONDecodeError as error:
        reason = "the file is empty" if not content.strip() else error.msg
        msg = f"{describe(path)}: not valid JSON: {reason} at line {error.lineno}, column {error.colno}"
        raise FormatError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"{describe(path)}: not valid JSON: {error}"
        raise FormatError(msg) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: a temporary file beside it is renamed over it.

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
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:64]}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask())
            Path(name).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        if isinstance(error, FormatError):
            raise
        msg = f"{describe(path)}: cannot be written: {getattr(error, 'strerror', None) or error}"
        raise FormatError(msg) from error


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


def _umask() -> int:
    # There is no call that only reads it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _refuse_constant(name: str) -> float:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        msg = f"key {twice!r} stands twice in one object"
        raise ValueError(msg)
    return result
