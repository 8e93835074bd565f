# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How the kernels for a CPU are compiled, and how they reach memory. Importing this module loads Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numba
from numba.core import cgutils, types

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


@numba.extending.intrinsic
def memory_at(_: Any, address: Any) -> Any:  # noqa: ANN401 - Numba's
    """Return an address as what `numba.carray` takes: it costs a call a tenth of what an array of NumPy's does."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate
