# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a record says of where it was made: versions, the checkout, the machine. No paths and no host names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.accuracy.server import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.accuracy.server import Server

# Of the server's process; for a server elsewhere nobody knows them.
_SERVER_PACKAGES = ("torch", "torch_npu", "transformers", "vllm_ascend_moe", "expert_maps")
NAMES = ("vllm", "lm_eval", "python", *_SERVER_PACKAGES)
_VARIABLES = ("OMP_NUM_THREADS", "PYTHONHASHSEED")
# Of larger files samples are hashed: the beginning, the end and places between.
_HASHED_BYTES, _SAMPLES, _SAMPLE_BYTES = 2**26, 16, 2**20
_RESULTS = "accuracy/results"


def versions(server: Server) -> dict[str, str | None]:
    """Return the versions that acted; None for what is not installed, or cannot be known.

    Args:
        server: asked for vLLM's: its CPU build has no metadata of that name.
    """
    try:
        vllm = str(server.get("/version")["version"])
    except (ServerError, LookupError, TypeError):
        vllm = None
    here = {name: _installed(name) if server.is_own else None for name in _SERVER_PACKAGES}
    return {"vllm": vllm, "lm_eval": _installed("lm_eval"), "python": platform.python_version(), **here}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git() -> dict[str, object]:
    """Return the commit of the working folder, and whether anything but results differs from it."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", f":(exclude){_RESULTS}")
    if commit is None or changes is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            ["git", *arguments],  # noqa: S607 - where users have it
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the run stood on.

    Args:
        environment: variables of the server that a configuration names.
    """
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "omp_num_threads": environment.get("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def model_identity(model: str) -> dict[str, str]:
    """Return what tells a checkpoint from another: a hash of each file, of large ones of samples, size and time.

    Args:
        model: a folder; any other name stands for itself.
    """
    folder = Path(model)
    if not folder.is_dir():
        return {"name": model}
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside.parts):
            found[str(inside)] = _identity(path)
    return found


def _identity(path: Path) -> str:
    state = path.stat()
    if state.st_size <= _HASHED_BYTES:
        return file_hash(path)
    digest = hashlib.sha256(f"{state.st_size} {state.st_mtime_ns}".encode())
    step = (state.st_size - _SAMPLE_BYTES) // (_SAMPLES - 1)
    with path.open("rb") as stream:
        for sample in range(_SAMPLES):
            stream.seek(sample * step)
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(_SAMPLE_BYTES):
            digest.update(part)
    return digest.hexdigest()


# A folder written in full, but for those of an address of the API.
_FOLDERS = re.compile(r"(?<![\w/.…-])/(?!v1/)(?:[^\s/\"':,;()\[\]{}]+/)+")
_HOST = re.compile(r"(https?://)[^/\s\"',;]+")


def shown(words: Sequence[str], folders: Mapping[Path, str]) -> list[str]:
    """Return texts with the names of folders in place of their paths, for a record that others read.

    Other folders become an ellipsis, and so do the hosts of addresses.

    Args:
        words: the texts, such as arguments.
        folders: path → name; longer paths are replaced first.
    """
    ordered = sorted(folders.items(), key=lambda item: -len(str(item[0])))
    result = []
    for word in words:
        text = word
        for path, name in ordered:
            for written in {str(path), str(path.resolve())}:
                text = text.replace(f"{written}/", f"{name}/" if name else "")
        result.append(_FOLDERS.sub("…/", _HOST.sub(r"\1…", text)))
    return result
