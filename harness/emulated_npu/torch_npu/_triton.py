# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels that vllm-ascend calls whether there is a Triton or not: by name, in plain torch."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from torch_npu import _names
from torch_npu._imports import AfterImport, find_first

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

KERNELS: dict[str, Callable[..., None]] = {}


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Give a kernel, by the function's name; it takes the grid first, then the kernel's own arguments."""
    KERNELS[function.__name__] = function
    return function


class Kernel:
    """What `triton.jit` makes of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Take the kernel's source, which is not run."""
        self.fn = function
        self.__name__ = function.__name__

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        """Return what is launched on a grid.

        Raises:
            NotImplementedError: the kernel is not given.
        """
        name = self.__name__
        if name not in KERNELS:
            msg = f"the Triton kernel {name} of {self.fn.__module__} is not emulated"
            raise NotImplementedError(msg)
        _names.used(f"triton.{name}")
        return lambda *args, **kwargs: KERNELS[name](grid, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the kernel's
        """Do what calling the function does, for kernels that call others."""
        return self.fn(*args, **kwargs)


def jit(function: Callable[..., Any] | None = None, **_: object) -> Any:  # noqa: ANN401 - a decorator, with or without options
    """Be `triton.jit`."""
    return jit if function is None else Kernel(function)


def install() -> None:
    """Take the place of Triton's decorator where vLLM has found no Triton."""
    find_first(AfterImport("vllm.triton_utils", _patch))


def _patch(module: Any) -> None:  # noqa: ANN401 - vLLM's module
    if not module.HAS_TRITON:
        module.triton.jit = jit


@kernel
def _compute_slot_mapping_kernel(  # noqa: PLR0917 - the kernel's
    grid: Sequence[int],
    num_tokens: int,
    max_num_tokens: int,
    query_start_loc: torch.Tensor,
    positions: torch.Tensor,
    block_table: torch.Tensor,
    block_table_stride: int,  # noqa: ARG001 - the tensor has it
    block_size: int,
    slot_mapping: torch.Tensor,
    *,
    PAD_ID: int,  # noqa: N803
    TOTAL_CP_WORLD_SIZE: int = 1,  # noqa: N803
    IS_CIRCULAR: bool = False,  # noqa: N803
    KV_CACHE_BLOCK_SIZE: int | None = None,  # noqa: N803
    **_: object,
) -> None:
    """Write for each token the slot of the KV cache that its position has in its request's blocks."""
    if TOTAL_CP_WORLD_SIZE != 1 or IS_CIRCULAR or KV_CACHE_BLOCK_SIZE not in {None, block_size}:
        msg = "_compute_slot_mapping_kernel: only without context parallelism and circular caches is it emulated"
        raise NotImplementedError(msg)
    slot_mapping[num_tokens:max_num_tokens] = PAD_ID
    starts = query_start_loc[: grid[0]].tolist()
    for row, (start, end) in enumerate(itertools.pairwise(starts)):
        at = positions[start:end].long()
        slot_mapping[start:end] = block_table[row, at // block_size].long() * block_size + at % block_size
