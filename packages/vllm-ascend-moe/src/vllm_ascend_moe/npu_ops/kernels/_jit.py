# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How the kernels for a CPU are compiled. Importing this module loads Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function at its first call and keep the result on disk for other processes.

    Indices are not checked, so a kernel must not be handed what its caller has not checked; the interpreter's
    lock is free while it runs.
    """
    try:
        return _compile(function, cache=True)
    except RuntimeError:
        # Neither this folder nor the user's cache can be written: each process compiles for itself.
        return _compile(function, cache=False)


def _compile(function: Callable[P, R], *, cache: bool) -> Callable[P, R]:
    return numba.njit(cache=cache, nogil=True, error_model="numpy", forceinline=True)(function)
