# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the runner V2 in plain torch, by name: those for which Triton's interpreter takes longest, or fails.

Each takes the grid, and of the kernel's arguments those that it needs, by the kernel's own names; `launch` binds them.
Tensors stand for the kernel's pointers, so that strides are mostly not needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FAMILIES = ("batch", "blocks", "logprobs", "rope", "sampling")
GIVEN: dict[str, Callable[..., None]] = {}


def given(function: Callable[..., None]) -> Callable[..., None]:
    """Give a kernel, by the function's name."""
    GIVEN[function.__name__] = function
    return function


def load() -> None:
    """Import all families, so that they are given."""
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")


def launch(
    name: str, names: Sequence[str], grid: Sequence[int] | Callable[..., Any], *args: object, **kwargs: object
) -> None:
    """Run a kernel that is given.

    Args:
        name: the kernel's.
        names: of its arguments.
        grid: numbers of programs, or what returns them from the arguments.
        args: as it is launched with.
        kwargs: by name; options of the launch are among them.
    """
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    GIVEN[name](grid(values) if callable(grid) else grid, **values)
