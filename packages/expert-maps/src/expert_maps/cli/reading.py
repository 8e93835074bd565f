# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where every command reads its maps and loads."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, cast

from expert_maps import limits
from expert_maps.cli.output import warn
from expert_maps.cli.usage import error_text
from expert_maps.errors import ExpertMapsError, FormatError, PlacementError
from expert_maps.files import Source, describe
from expert_maps.formats import read_load, read_placement

if TYPE_CHECKING:
    from expert_maps.files import AnyPath
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement


def as_input(path: str | os.PathLike[str]) -> AnyPath:
    """Return what is read under this name: for ``-`` standard input, whole, else the path itself.

    Raises:
        FormatError: standard input is larger than any file may be.
    """
    if os.fspath(path) != "-":
        return path
    content = sys.stdin.buffer.read(limits.MAX_FILE_BYTES + 1)
    if len(content) > limits.MAX_FILE_BYTES:
        msg = f"standard input has more than {limits.MAX_FILE_BYTES} bytes; expected at most so many"
        raise FormatError(msg)
    return Source("standard input", content)


def read_map(
    path: str | os.PathLike[str], *, allow_uneven: bool = False, allow_duplicates: bool = False
) -> Placement:
    """Read a placement; an invalid one is an input error that names the file."""
    try:
        return read_any(path, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates)
    except PlacementError as error:
        name = "standard input" if os.fspath(path) == "-" else describe(path)
        msg = f"{name}: {error_text(error)}"
        raise ExpertMapsError(msg) from error


def read_any(
    path: str | os.PathLike[str], *, allow_uneven: bool = False, allow_duplicates: bool = False
) -> Placement:
    """Read a placement, from standard input too.

    Raises:
        PlacementError: it is invalid; every violation is listed.
        FormatError: it cannot be read as a placement.
    """
    source = cast("os.PathLike[str]", as_input(path))
    return read_placement(source, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates)


def read_trace(path: str | os.PathLike[str], key: str | None) -> ExpertLoad:
    """Read a load, and warn of one without tokens."""
    trace = read_load(path, key)
    if not trace.total.any():
        warn(f"{path}: every count is 0, there is nothing to balance")
    return trace
