# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Building the packages: for each machine, twice to equal bytes; then checking them."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.sessions.bom import FILE
from harness.sessions.environments import CORE, PLUGIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    import nox

# The compiled planner, as it is named in a wheel.
LIBRARY = "expert_maps/_planner.so"
# The machines that get a wheel, and what says so in the head of a library (e_machine in ELF).
MACHINES = {"x86_64": 62, "aarch64": 183}
# Where the packages are left.
DIST = Path("build/dist")
# For which the metadata must resolve. Where no wheel fits, from the source distribution.
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SYSTEMS = ("linux", "windows", "macos")
# 2020: what zip files can hold, and no day on which anything was built. A checkout has the time of its last commit.
_OLD = "1577836800"


def build(session: nox.Session) -> None:
    """Build all packages into `DIST`, and again from a copy elsewhere; stop where a byte differs."""
    session.install("--require-hashes", "-r", "requirements/packages.txt", "-r", "requirements/zig.txt")
    times = {"SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH") or _time_of_commit()}
    shutil.rmtree(DIST, ignore_errors=True)
    _build_all(session, Path(), DIST, times)
    scratch = Path(session.create_tmp()).absolute() / "again"
    shutil.rmtree(scratch, ignore_errors=True)
    left_out = shutil.ignore_patterns("__pycache__", "*.so")
    for member in (CORE, PLUGIN):
        shutil.copytree(member, scratch / member, ignore=left_out)
    # Rules for what is left out of a source distribution are read from there.
    shutil.copy(".gitignore", scratch)
    _build_all(session, scratch, scratch / "dist", times)
    first, second = (hashes(folder) for folder in (DIST, scratch / "dist"))
    if first != second:
        different = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
        session.error(f"built twice, these differ: {', '.join(different)}")
    lines = "".join(f"{digest}  {name}\n" for name, digest in first.items())
    (DIST.parent / "SHA256SUMS").write_text(lines, encoding="utf-8")


def _time_of_commit() -> str:
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - no input in it
    return done.stdout.strip() or _OLD


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _build_all(session: nox.Session, root: Path, dist: Path, times: dict[str, str]) -> None:
    # With the build back end that is pinned.
    builder = ["python", "-m", "build", "--no-isolation", "--outdir", str(dist)]
    core = str(root / CORE)
    session.run(*builder, "--sdist", core, env=times)
    for machine in MACHINES:
        _build_for(session, machine, dist, [*builder, "--wheel", core], times)
    session.run(*builder, str(root / PLUGIN), env=times)


def _build_for(
    session: nox.Session, machine: str, dist: Path, command: Sequence[str], times: dict[str, str]
) -> None:
    """Build the wheel of expert-maps for a machine, and stop where it would not load on what its tag promises."""
    python = str(Path(session.bin).absolute() / "python")
    platform_tag = f"manylinux_2_17_{machine}"
    options = {
        "EXPERT_MAPS_CC": shlex.join([python, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.17"]),
        "EXPERT_MAPS_WHEEL_PLATFORM": platform_tag,
    }
    session.run(*command, env={**options, **times})
    wheel = next(dist.glob(f"expert_maps-*-py3-none-{platform_tag}.whl"))
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read(LIBRARY)
    if library[:4] != b"\x7fELF" or struct.unpack_from("<H", library, 18) != (MACHINES[machine],):
        session.error(f"{wheel}: the library in it is not of {machine}")
    needed = {(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library)}
    if not needed or max(needed) > (2, 17):
        session.error(f"{wheel}: the library in it needs glibc {sorted(needed)[-1:]}; expected 2.17 at most")


def check(session: nox.Session) -> None:
    """Check descriptions, contents, and that each Python and system finds what expert-maps needs."""
    files = sorted(map(str, DIST.iterdir()))
    session.run("twine", "check", "--strict", *files)
    session.run("check-wheel-contents", *(name for name in files if name.endswith(".whl")))
    for name in files:
        if name.endswith(".whl") and not _has_bom(Path(name)):
            session.error(f"{name}: no bill of materials in it; expected one at .dist-info/sboms/{FILE}")
    asked = Path(session.create_tmp()) / "asked.txt"
    asked.write_text("expert-maps\n", encoding="utf-8")
    # With this interpreter where one is needed: looking for others takes longer than the rest.
    python = str(Path(session.bin).absolute() / "python")
    for system in SYSTEMS:
        for version in PYTHONS:
            where = ["--python-platform", system, "--python-version", version, "--find-links", str(DIST)]
            session.run(
                "uv", "pip", "compile", "--quiet", "--python", python, *where, str(asked), silent=True
            )


def _has_bom(wheel: Path) -> bool:
    with zipfile.ZipFile(wheel) as archive:
        return any(name.endswith(f".dist-info/sboms/{FILE}") for name in archive.namelist())
