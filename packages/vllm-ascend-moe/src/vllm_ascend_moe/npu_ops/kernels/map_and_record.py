# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Logical → physical ids and their count in one pass over the ids. Importing this module loads Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_ascend_moe.npu_ops.kernels._jit import compiled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.int32 | np.int64]


@compiled
def by_table(
    ids: Ids,
    table: NDArray[np.int32],
    token_offset: int,
    counted: NDArray[np.bool_],
    num_counted: int,
    load: Ids,
    physical: Ids,
) -> int:
    """Map by a routing table, row ``(token + offset) % rows``, and count.

    Args:
        ids: [T, K], logical; negative stays −1 … as it is.
        table: [rows, E].
        token_offset: index of the first token.
        counted: [T] whether a token is counted, or [0] for all of them.
        num_counted: tokens past these are not counted.
        load: [P], added to.
        physical: [T, K], written.

    Returns:
        The entry of ids at which it stopped, because its id or what the table says of it does not exist; −1
        where there was none.
    """
    num_tokens, top_k = ids.shape
    rows, num_experts = table.shape
    row = token_offset % rows
    for token in range(num_tokens):
        count = token < num_counted and (len(counted) == 0 or counted[token])
        for k in range(top_k):
            expert = ids[token, k]
            if expert < 0:
                physical[token, k] = expert
                continue
            if expert >= num_experts:
                return token * top_k + k
            slot = table[row, expert]
            if count:
                if slot < 0 or slot >= len(load):
                    return token * top_k + k
                load[slot] += 1
            physical[token, k] = slot
        row += 1
        if row == rows:
            row = 0
    return -1


@compiled
def by_turns(
    ids: Ids,
    slots: NDArray[np.int64],
    replicas: NDArray[np.int64],
    counted: NDArray[np.bool_],
    num_counted: int,
    load: Ids,
    physical: Ids,
) -> int:
    """Map by vLLM's tables, token t to slot ``t % replicas``, and count; otherwise as `by_table`.

    An expert without slots, whose row holds −1, is sent nowhere and not counted.

    Args:
        ids: [T, K], logical.
        slots: [E, N].
        replicas: [E], how many of a row's slots are used.
        counted: as in `by_table`.
        num_counted: as in `by_table`.
        load: [P], added to.
        physical: [T, K], written.

    Returns:
        As in `by_table`.
    """
    num_tokens, top_k = ids.shape
    num_experts = len(slots)
    for token in range(num_tokens):
        count = token < num_counted and (len(counted) == 0 or counted[token])
        for k in range(top_k):
            expert = ids[token, k]
            if expert < 0:
                physical[token, k] = expert
                continue
            if expert >= num_experts or replicas[expert] > slots.shape[1]:
                return token * top_k + k
            slot = slots[expert, token % replicas[expert] if replicas[expert] > 1 else 0]
            if count and slot >= 0:
                if slot >= len(load):
                    return token * top_k + k
                load[slot] += 1
            physical[token, k] = slot
    return -1
