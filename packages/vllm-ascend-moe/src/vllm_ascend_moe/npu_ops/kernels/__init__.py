# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels behind the ops where plain torch is slow: Numba on a CPU, Triton on a GPU. Each has a twin in ops/.

Nothing is compiled at import: a module here is loaded by the first call that needs it, and Numba keeps what it
has compiled on disk. On an NPU only the Triton kernel can be reached. Numba comes with the extra ``cpu``; where it
cannot be loaded the twins serve.
"""

from __future__ import annotations

import functools

from vllm_ascend_moe._log import logger


@functools.cache
def have_kernels() -> bool:
    """Return whether Numba can be loaded, and say so once where it cannot."""
    reason = no_kernels()
    if reason is not None:
        logger.warning("vllm-ascend-moe serves on this CPU by plain torch, without its kernels: %s", reason)
    return reason is None


def no_kernels() -> str | None:
    """Say why there are no kernels for a CPU, and what to do; None where there are."""
    try:
        import numba  # noqa: F401 - one that does not fit its NumPy says so when it is loaded
    except ImportError as error:
        return f"{str(error).splitlines()[0]}; install it (pip install 'vllm-ascend-moe[cpu]')"
    return None
