# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is pinned in the process that times, before torch is imported: one thread, and an allocator that keeps its pages."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

# One thread: more of them on a busy machine make times erratic.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# glibc's allocator asks the system for every big tensor anew and gives it back at once, so that its pages are
# faulted in again by every call. A server that has run for a while reuses them; so does every side here.
_ALLOCATOR = {"M_TRIM_THRESHOLD": (-1, (1 << 31) - 1), "M_TOP_PAD": (-2, 64 << 20), "M_MMAP_MAX": (-4, 0)}


def pin() -> str:
    """Pin threads and allocator; return what of it was done, for the record."""
    late = [name for name in THREADS if os.environ.get(name) != "1"] if "torch" in sys.modules else []
    os.environ.update(dict.fromkeys(THREADS, "1"))
    # Importing vLLM talks about the machine.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    threads = "one thread" if not late else f"torch was imported with {', '.join(late)} unset"
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if all(mallopt(number, value) for number, value in _ALLOCATOR.values()):
            return f"{threads}; {', '.join(f'{name}={value}' for name, (_, value) in _ALLOCATOR.items())}"
    return f"{threads}; the allocator as it is"
