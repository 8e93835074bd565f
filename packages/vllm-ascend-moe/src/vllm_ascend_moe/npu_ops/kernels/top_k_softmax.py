# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Top-k of each token's logits and the softmax of those alone, in one pass. Importing this module loads Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from vllm_ascend_moe.npu_ops.kernels._jit import compiled, memory_at
from vllm_ascend_moe.npu_ops.kernels.gating_top_k import LANES, floor_of_best, keep_experts, keep_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray


@compiled
def choose_by_logits(
    address: int,
    num_experts: int,
    group_count: int,
    k_group: int,
    scaling: float,
    weights: NDArray[np.float32],
    ids: NDArray[np.int32],
) -> None:
    """Choose each token's K experts, and weigh them by the softmax over these K.

    A softmax keeps the order of the logits, and divided by the sum of K of its values it is the softmax of these K:
    the exponentials of all the others need not be computed.

    Args:
        address: of the logits, dense float32 [T, E], which must stay alive meanwhile; a token with a NaN among them gets weights that are NaN.
        num_experts: E.
        group_count: G, which divides E; a group's score is its best expert's.
        k_group: groups a token chooses from, with at least K experts in them.
        scaling: multiplies the weights.
        weights: [T, K], written.
        ids: [T, K], written, best first; of equal logits the lower id.
    """
    num_tokens, top_k = ids.shape
    logits = numba.carray(memory_at(address), (num_tokens, num_experts), np.float32)  # type: ignore[attr-defined, call-arg]
    # Scratch, allocated at once: for one token, allocations are what takes time.
    floats, integers = (
        np.empty(2 * LANES + k_group, np.float32),
        np.empty(num_experts + 1 + k_group, np.int32),
    )
    first, second, group_best = floats[:LANES], floats[LANES : 2 * LANES], floats[2 * LANES :]
    candidates, group_ids = integers[: num_experts + 1], integers[num_experts + 1 :]
    kept = np.ones(group_count, np.bool_)
    for token in range(num_tokens):
        choice = logits[token]
        undefined = 0
        for expert in range(num_experts):
            undefined += choice[expert] != choice[expert]  # so is a NaN, and only that
        if k_group < group_count:
            keep_groups(choice, False, group_best, group_ids, kept)  # noqa: FBT003 - Numba's, by position
        floor = floor_of_best(choice, kept, first, second, top_k)
        keep_experts(choice, kept, floor, candidates, weights[token], ids[token])
        total = np.float32(0.0)
        largest = weights[token, 0]
        for place in range(top_k):
            weight = np.exp(weights[token, place] - largest)
            weights[token, place] = weight
            total += weight
        factor = np.float32(np.nan) if undefined else np.float32(scaling) / total
        for place in range(top_k):
            weights[token, place] *= factor
