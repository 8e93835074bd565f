# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a record says of where it was made: versions, the checkout, the machine. No paths and no host names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
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
# Larger files are told apart by their size alone.
_HASHED_BYTES = 2**26
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
    """Return what tells a checkpoint from another: a hash of each small file, the size of large ones.

    Args:
        model: a folder; any other name stands for itself.
    """
    folder = Path(model)
    if not folder.is_dir():
        return {"name": model}
    found = {}
    for path in sorted(folder.glob("*")):
        if path.is_file() and path.suffix in {".json", ".safetensors", ".jinja", ".txt", ".model"}:
            size = path.stat().st_size
            small = size <= _HASHED_BYTES
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{size} bytes"
    return found


def shown(words: Sequence[str], folders: Mapping[Path, str]) -> list[str]:
    """Return arguments with the names of folders in place of their paths, for a record that others read.

    Args:
        words: the arguments.
        folders: path → name; longer paths are replaced first.
    """
    ordered = sorted(folders.items(), key=lambda item: -len(str(item[0])))
    result = []
    for word in words:
        text = word
        for path, name in ordered:
            for written in {str(path), str(path.resolve())}:
                text = text.replace(f"{written}/", f"{name}/" if name else "")
        result.append(text)
    return result
