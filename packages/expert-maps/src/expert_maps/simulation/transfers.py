# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many rounds of transfers lead from one placement to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics

if TYPE_CHECKING:
    from expert_maps.placement import Placement


def transfer_rounds(before: Placement, after: Placement) -> tuple[int, int, int]:
    """Return slots that change, slots fetched from another rank, and the rounds of transfers, over all layers.

    In a round a rank sends one expert at most and receives one at most. The transfers of a layer are the edges between
    senders and receivers, and their fewest rounds are the most that one rank sends or receives (König's theorem on
    edge colouring). Of the ranks that hold an expert, the one that has sent least so far sends it. Layers are moved one
    after another, as vLLM does.

    Args:
        before: where the experts are.
        after: where they go; of the same counts.

    Raises:
        ExpertMapsError: the counts differ.
    """
    moved = metrics.moves(before, after)
    held = before.global_expert_map() >= 0  # [L, R, E]
    rounds = 0
    for layer in np.flatnonzero(moved.fetched.any(axis=1)).tolist():
        slots = np.flatnonzero(moved.fetched[layer])
        receives = np.bincount(after.slot_rank[slots], minlength=after.ep_size)
        sends = np.zeros(after.ep_size, dtype=np.int64)
        for expert in after.physical_to_logical[layer, slots].tolist():
            owners = np.flatnonzero(held[layer, :, expert])
            sends[owners[sends[owners].argmin()]] += 1
        rounds += int(max(receives.max(), sends.max()))
    return moved.num_changed, moved.num_fetched, rounds
