# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Their source distributions: fetched by hash, and of what is inside only the tests that are run."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from harness.contract.fetching import ContractError, fetch_source

if TYPE_CHECKING:
    from pathlib import Path

_STAMP = "unpacked.txt"


@dataclass(frozen=True)
class Source:
    """A source distribution.

    Attributes:
        project: its name in the index.
        version: of it.
        sha256: of the archive.
    """

    project: str
    version: str
    sha256: str


def unpack_tests(source: Source, files: tuple[str, ...], folder: Path) -> Path:
    """Fetch a source distribution and unpack some of its files, with what makes their folders packages.

    Args:
        source: which.
        files: paths in it, without its top folder.
        folder: where archives and tests are kept; what is there as asked for is taken.

    Returns:
        The folder in which the files have their paths.

    Raises:
        ContractError: it could not be fetched, or lacks one of the files.
    """
    name = f"{source.project}-{source.version}"
    target = folder / name
    stamp = target / _STAMP
    wanted = {
        *files,
        *(str(parent / "__init__.py") for file in files for parent in PurePosixPath(file).parents),
    }
    asked = "\n".join([source.sha256, *sorted(wanted)])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == asked:
        return target
    archive = fetch_source(folder / "downloads" / name, source.project, source.version, source.sha256)
    shutil.rmtree(target, ignore_errors=True)
    found = set()
    with tarfile.open(archive) as opened:
        for member in opened:
            _, _, inner = member.name.partition("/")
            if inner in wanted and member.isfile():
                member.name = inner
                opened.extract(member, target, filter="data")
                found.add(inner)
    missing = sorted(set(files) - found)
    if missing:
        msg = f"{archive.name} has no {', '.join(missing)}; nothing was run"
        raise ContractError(msg)
    stamp.write_text(asked, encoding="utf-8")
    return target
