# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Layers in blocks: planned one after another, or on several threads at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _T = TypeVar("_T")

# Large enough that the overhead of a call is spread over many of them, small enough that progress can be shown, and that
# an interrupt, which waits for a short call's end, is heard soon.
_LAYERS_PER_BLOCK = 64
_SLOTS_TIMES_EXPERTS_PER_BLOCK = 2**24


def in_blocks(
    do: Callable[[slice], _T],
    num_layers: int,
    work: int,
    progress: Callable[[int, int], object] | None = None,
    num_threads: int = 1,
    abandon: Callable[[], object] | None = None,
) -> list[_T]:
    """Do something to all layers, block by block.

    Args:
        do: is called with the layers of each block; on other threads where there are several.
        num_layers: L.
        work: slots times experts of a layer.
        progress: is called with (layers done, L), on this thread and in order.
        num_threads: at most so many blocks at a time, and at least as many blocks where there are layers for them.
        abandon: is called after an error or an interrupt, so that blocks that are being done on other threads end.

    Returns:
        What it returned, in the order of the layers, whichever thread was first.
    """
    most = max(1, _SLOTS_TIMES_EXPERTS_PER_BLOCK // work)
    size = min(_LAYERS_PER_BLOCK, most, -(-num_layers // num_threads))
    blocks = [slice(start, min(start + size, num_layers)) for start in range(0, num_layers, size)]
    found = []
    with ThreadPoolExecutor(num_threads) if num_threads > 1 else nullcontext() as pool:
        answers: Iterator[_T] = map(do, blocks) if pool is None else pool.map(do, blocks)
        try:
            for block, answer in zip(blocks, answers, strict=True):
                found.append(answer)
                if progress is not None:
                    progress(block.stop, num_layers)
        except BaseException:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
            if abandon is not None:
                abandon()
            raise
    return found
