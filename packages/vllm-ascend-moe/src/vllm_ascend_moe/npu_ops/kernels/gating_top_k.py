# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Top-k of each token's scores, within its best groups, in one pass. Importing this module loads Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vllm_ascend_moe.npu_ops.kernels._jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Floats of a vector register that most CPUs have.
LANES = 8


@compiled
def insert(
    values: NDArray[np.float32], names: NDArray[np.int32], held: int, value: np.float32, name: int
) -> None:
    """Put a value into a descending list of which ``held`` places are taken; of a full one the last falls out.

    Equal values keep the order in which they came. A NaN stays where it is put, at the end.
    """
    place = min(held, len(values) - 1)
    while place > 0 and values[place - 1] < value:
        values[place] = values[place - 1]
        names[place] = names[place - 1]
        place -= 1
    values[place] = value
    names[place] = name


@compiled
def keep_groups(
    choice: NDArray[np.float32],
    sum_of_two: bool,  # noqa: FBT001 - Numba's functions take arguments by position
    best: NDArray[np.float32],
    best_ids: NDArray[np.int32],
    kept: NDArray[np.bool_],
) -> None:
    """Mark a token's best groups.

    Args:
        choice: [E], what is chosen by.
        sum_of_two: whether a group's score is the sum of its two best, rather than its best.
        best: [groups that are kept], scratch.
        best_ids: as many, scratch.
        kept: [G], written.
    """
    size = len(choice) // len(kept)
    for group in range(len(kept)):
        first = second = np.float32(-np.inf)
        for expert in range(group * size, (group + 1) * size):
            second = max(second, min(first, choice[expert]))
            first = max(first, choice[expert])
        score = first + second if sum_of_two else first
        if group < len(best) or score > best[len(best) - 1]:
            insert(best, best_ids, group, score, group)
    kept[:] = False
    for place in range(len(best_ids)):
        kept[best_ids[place]] = True


@compiled
def floor_of_best(
    choice: NDArray[np.float32],
    kept: NDArray[np.bool_],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    top_k: int,
) -> np.float32:
    """Return a value that at least K experts reach, or −inf.

    The experts are dealt out to as many lanes as fit a vector register. The least of the lanes' best values is
    reached by an expert of each lane, the least of their second best by two. One pass without a branch.

    Args:
        choice: [E], what is chosen by.
        kept: [G], whether a group's experts may be chosen.
        first: [lanes], scratch.
        second: [lanes], scratch.
        top_k: K.
    """
    for lane in range(LANES):
        first[lane] = second[lane] = -np.inf
    if top_k > 2 * LANES:
        return np.float32(-np.inf)
    size = len(choice) // len(kept)
    for group in range(len(kept)):
        if kept[group]:
            for start in range(group * size, (group + 1) * size - LANES + 1, LANES):
                if top_k > LANES:
                    for lane in range(LANES):
                        value = choice[start + lane]
                        less = value if value < first[lane] else first[lane]
                        second[lane] = less if less > second[lane] else second[lane]
                        first[lane] = value if value > first[lane] else first[lane]
                else:
                    for lane in range(LANES):
                        value = choice[start + lane]
                        first[lane] = value if value > first[lane] else first[lane]
    least = second if top_k > LANES else first
    floor = least[0]
    for lane in range(1, LANES):
        floor = min(floor, least[lane])
    return floor


@compiled
def keep_experts(
    choice: NDArray[np.float32],
    kept: NDArray[np.bool_],
    floor: np.float32,
    candidates: NDArray[np.int32],
    best: NDArray[np.float32],
    best_ids: NDArray[np.int32],
) -> None:
    """List a token's K best experts, best first.

    Few experts reach the floor, and they are picked out without a branch: a branch on what is not known
    beforehand costs more than all else here.

    Args:
        choice: [E], what is chosen by.
        kept: [G], whether a group's experts may be chosen.
        floor: what experts below need not be looked at.
        candidates: [E + 1], scratch.
        best: [K], written.
        best_ids: [K], written.
    """
    size = len(choice) // len(kept)
    found = 0
    for group in range(len(kept)):
        if kept[group]:
            for expert in range(group * size, (group + 1) * size):
                candidates[found] = expert
                found += choice[expert] >= floor
    if found < len(best):
        # NaN reaches no floor. The ids are to be K different experts even so: the first ones that there are.
        found = 0
        for group in range(len(kept)):
            if kept[group]:
                for expert in range(group * size, (group + 1) * size):
                    candidates[found] = expert
                    found += 1
    held = 0
    last = np.float32(-np.inf)
    for place in range(found):
        value = choice[candidates[place]]
        if value > last or held < len(best):
            insert(best, best_ids, held, value, candidates[place])
            held += 1
            if held >= len(best):
                last = best[len(best) - 1]


@compiled
def choose_experts(
    scores: NDArray[np.float32],
    bias: NDArray[np.float32],
    group_count: int,
    k_group: int,
    sum_of_two: bool,  # noqa: FBT001
    normalise: bool,  # noqa: FBT001
    scaling: float,
    eps: float,
    weights: NDArray[np.float32],
    ids: NDArray[np.int32],
) -> None:
    """Choose each token's K experts by score plus bias, and weigh them by score.

    ``torch.topk`` sorts pairs in memory; here the best K so far stay in cache, and only experts that reach a
    floor found before are compared with them.

    Args:
        scores: [T, E].
        bias: [E], or [0] for none.
        group_count: G, which divides E.
        k_group: groups a token chooses from, with at least K experts in them.
        sum_of_two: whether a group's score is the sum of its two best, rather than its best.
        normalise: whether a token's weights are divided by their sum.
        scaling: multiplies the weights last.
        eps: added to the sum that is divided by.
        weights: [T, K], written.
        ids: [T, K], written, best first; of equal scores the lower id.
    """
    num_tokens, num_experts = scores.shape
    top_k = ids.shape[1]
    biased = np.empty(num_experts, np.float32)
    best, best_ids = np.empty(top_k, np.float32), np.empty(top_k, np.int32)
    group_best, group_ids = np.empty(k_group, np.float32), np.empty(k_group, np.int32)
    kept = np.ones(group_count, np.bool_)
    first, second = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    candidates = np.empty(num_experts + 1, np.int32)
    for token in range(num_tokens):
        choice = scores[token]
        if len(bias) > 0:
            for expert in range(num_experts):
                biased[expert] = choice[expert] + bias[expert]
            choice = biased
        if k_group < group_count:
            keep_groups(choice, sum_of_two, group_best, group_ids, kept)
        floor = floor_of_best(choice, kept, first, second, top_k)
        keep_experts(choice, kept, floor, candidates, best, best_ids)
        total = 0.0
        for place in range(top_k):
            weight = scores[token, best_ids[place]]
            weights[token, place] = weight
            total += weight
        factor = scaling / (total + eps) if normalise else scaling
        for place in range(top_k):
            ids[token, place] = best_ids[place]
            weights[token, place] *= factor
