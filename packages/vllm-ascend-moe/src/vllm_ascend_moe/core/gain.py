# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a rearrangement pays, and which of its layers are moved; `max_moves`, within a layer, is the planner's.

`MoveRule` is made in `backends.rules`.

All is counted in routed tokens of the hottest rank, for which a step waits: those that a plan saves until the next
rearrangement, and those that a rank could have computed while it receives weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import Placement, moves, rank_load

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Device type → FLOP/s at which a rank computes experts, bytes/s at which it receives them. Orders of magnitude: matrix
# products in 16 bits at half of an accelerator's peak and a link of 200 Gbit/s a rank; a few cores and copies through gloo.
_RATES = {"cpu": (5e10, 1e9)}
_ACCELERATOR = (3e14, 2.5e10)


def tokens_per_slot(device_type: str, slot_bytes: float, slot_parameters: float) -> float:
    """Return how many routed tokens a rank could compute while it receives one slot's weights.

    Args:
        device_type: as torch names it.
        slot_bytes: of one slot's weights, scales included.
        slot_parameters: numbers among them; a token takes two operations for each.
    """
    flops, bandwidth = _RATES.get(device_type, _ACCELERATOR)
    return slot_bytes / bandwidth * flops / (2 * slot_parameters)


@dataclass(frozen=True)
class Selection:
    """What is moved of a plan.

    Attributes:
        physical_to_logical: int32 [L, P]; the present rows of layers that are not moved.
        layers: bool [L], those that are.
        reason: why nothing is moved; None where something is, or the plan was the present placement.
        skipped: the same in a word of `metric_table.SKIPPED`; None where something is moved.
    """

    physical_to_logical: NDArray[np.int32]
    layers: NDArray[np.bool_]
    reason: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class MoveRule:
    """By what layers are chosen.

    Attributes:
        min_gain: the least share of the hottest ranks' tokens, summed over all layers, that must be saved; None for a cost
            estimate, layer by layer.
        max_layers: most layers that one rearrangement moves, those that save most; None for any number.
        slot_tokens: see `tokens_per_slot`.
        windows: how often the load that a plan is made for comes again until the next rearrangement: interval / window.
        slot_bytes: of one slot's weights, scales included; for the metrics only.
    """

    min_gain: float | None = None
    max_layers: int | None = None
    slot_tokens: float = 0.0
    windows: float = 1.0
    slot_bytes: float = 0.0

    def select(self, before: Placement, after: Placement, load: ArrayLike) -> Selection:
        """Choose the layers to be moved.

        Args:
            before: the present placement.
            after: the plan.
            load: [L, E], of the window.

        Raises:
            ExpertMapsError: these are not of the same counts.
        """
        found = moves(before, after)
        peaks = rank_load(before, load).max(axis=1)
        saved = peaks - rank_load(after, load).max(axis=1)
        received = found.fetched.reshape(len(peaks), before.ep_size, -1).sum(axis=2).max(axis=1)
        cost = received * self.slot_tokens
        gain = saved * self.windows
        chosen: NDArray[np.bool_] = np.any(found.changed, axis=1)
        reason, skipped = None, None if chosen.any() else "unchanged"
        if self.min_gain is None and chosen.any():
            chosen = chosen & (gain > cost)
            if not chosen.any():
                skipped = "cost"
                reason = (
                    f"until the next rearrangement it would save the hottest ranks {gain.clip(0).sum():.0f} tokens, and "
                    f"cost as long as {cost.sum():.0f} take (min_gain sets a limit in its place)"
                )
        if self.max_layers is not None and chosen.sum() > self.max_layers:
            worth = gain if self.min_gain is not None else gain - cost
            order = np.argsort(-np.where(chosen, worth, -np.inf), kind="stable")
            chosen = np.zeros_like(chosen)
            chosen[order[: self.max_layers]] = True
        if self.min_gain is not None and chosen.any():
            total = float(peaks.sum())
            share = float(saved[chosen].sum()) / total if total > 0 else 0.0
            if share < self.min_gain:
                chosen = np.zeros_like(chosen)
                skipped = "min_gain"
                reason = f"it would save the hottest ranks {share:.2%} of their tokens; min_gain is {self.min_gain:.2%}"
        rows = np.where(chosen[:, None], after.physical_to_logical, before.physical_to_logical)
        return Selection(rows, chosen, reason, skipped)


__all__ = ["MoveRule", "Selection", "tokens_per_slot"]
