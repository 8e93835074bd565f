# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Weighted sums of bfloat16 rows in float32. Importing this module loads Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vllm_ascend_moe.kernels._jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HALF = np.uint32(16)


@compiled
def add_up(
    rows: NDArray[np.uint16],
    where: NDArray[np.int64],
    weights: NDArray[np.float32],
    total: NDArray[np.float32],
) -> None:
    """Add up each token's rows by weight: one pass over them, and no copy in float32.

    Args:
        rows: bfloat16 as bits, [M, H].
        where: [T, K], rows, in range: it is not checked here.
        weights: [T, K].
        total: [T, H], written.
    """
    num_tokens, top_k = where.shape
    width = rows.shape[1]
    # A bfloat16 is the upper half of a float32.
    bits = np.empty(width, np.uint32)
    values = bits.view(np.float32)
    for token in range(num_tokens):
        line = total[token]
        line[:] = 0
        for k in range(top_k):
            row, weight = rows[where[token, k]], weights[token, k]
            for column in range(width):
                bits[column] = np.uint32(row[column]) << _HALF
            for column in range(width):
                line[column] += weight * values[column]
