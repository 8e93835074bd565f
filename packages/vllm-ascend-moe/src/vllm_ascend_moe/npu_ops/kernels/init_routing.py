# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Entries sorted by expert, by counting. Importing this module loads Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vllm_ascend_moe.npu_ops.kernels._jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray


@compiled
def sort_by_expert(
    ids: NDArray[np.int32],
    start: int,
    counts: NDArray[np.int64],
    source: NDArray[np.int32],
    order: NDArray[np.int32],
    row: NDArray[np.int32],
) -> int:
    """Sort the entries of the experts from ``start`` on, stably: two passes, no comparison of entries.

    Args:
        ids: [T, K].
        start: the first active expert.
        counts: [active experts], written: each expert's entries.
        source: [T·K], written as far as there are active entries: the token of each sorted entry.
        order: [T·K], as far: the entry itself, t·K + k.
        row: [T·K], written: for each entry its place among the sorted ones, −1 where it is not active.

    Returns:
        How many entries are active.
    """
    num_tokens, top_k = ids.shape
    counts[:] = 0
    for token in range(num_tokens):
        for k in range(top_k):
            expert = ids[token, k] - start
            if 0 <= expert < len(counts):
                counts[expert] += 1
    place = np.empty(len(counts), np.int64)
    active = 0
    for expert in range(len(counts)):
        place[expert] = active
        active += counts[expert]
    for token in range(num_tokens):
        for k in range(top_k):
            entry = token * top_k + k
            expert = ids[token, k] - start
            if 0 <= expert < len(counts):
                source[place[expert]] = token
                order[place[expert]] = entry
                row[entry] = place[expert]
                place[expert] += 1
            else:
                row[entry] = -1
    return active
