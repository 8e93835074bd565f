# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a record says of where it was made: versions, the checkout, the machine. No paths and no host names."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.accuracy.server import ServerError
from harness.record import provenance
from harness.record.provenance import file_identities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.accuracy.server import Server

# Of the server's process; for a server elsewhere nobody knows them.
_SERVER_PACKAGES = ("torch", "torch_npu", "vllm_ascend", "transformers", "vllm_ascend_moe", "expert_maps")
NAMES = ("vllm", "lm_eval", "python", *_SERVER_PACKAGES)
_VARIABLES = ("OMP_NUM_THREADS", "PYTHONHASHSEED")


def versions(server: Server) -> dict[str, str | None]:
    """Return the versions that acted; None for what is not installed, or cannot be known.

    Args:
        server: asked for vLLM's: its CPU build has no metadata of that name.
    """
    try:
        vllm = str(server.get("/version")["version"])
    except (ServerError, LookupError, TypeError):
        vllm = None
    installed = provenance.versions(("lm_eval", *_SERVER_PACKAGES))
    here = {name: installed.get(name) if server.is_own else None for name in _SERVER_PACKAGES}
    return {"vllm": vllm, "lm_eval": installed.get("lm_eval"), "python": platform.python_version(), **here}


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
    """Return what tells a checkpoint from another: a hash of each file; any other name stands for itself."""
    folder = Path(model)
    return file_identities(folder) if folder.is_dir() else {"name": model}
