# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How sessions are called, and what the machine has: interpreters, paths of the caller, exit codes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from nox.command import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import nox


def npu_python() -> str | None:
    """Return the interpreter to use where there is an NPU: NPU_PYTHON, or the first on the PATH; None elsewhere."""
    if given := os.environ.get("NPU_PYTHON"):
        return given
    on_path = [found for name in ("python3", "python") if (found := shutil.which(name))]
    return next(iter(on_path), None) if any(Path("/dev").glob("davinci[0-9]*")) else None


def lowest_python() -> str | None:
    """Return the lowest Python that the packages allow where it runs; None, for nox's own, elsewhere."""
    found = shutil.which("python3.10")
    # A name on the path may be one of a version that is not chosen.
    runs = found and not subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode  # noqa: S603 - itself
    return "3.10" if runs else None


@contextlib.contextmanager
def exit_code_kept() -> Iterator[None]:
    """End nox with the code of a command that says more than right or wrong by it."""
    try:
        yield
    except CommandFailed as error:
        code = str(error).rpartition(" ")[2]
        raise SystemExit(int(code) if code.isdigit() else 1) from error


def from_where_nox_was_called(session: nox.Session, *options: str) -> list[str]:
    """Return the arguments with the relative paths of some options made to hold from this folder."""
    here = Path.cwd()
    arguments = list(session.posargs)
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in options:
            continue
        if equals:
            arguments[index] = f"{name}={_relative(session.invoked_from, value, here)}"
        elif index + 1 < len(arguments):
            arguments[index + 1] = _relative(session.invoked_from, arguments[index + 1], here)
    return arguments


def _relative(origin: str, value: str, here: Path) -> str:
    return value if Path(value).is_absolute() else os.path.relpath(Path(origin) / value, here)
