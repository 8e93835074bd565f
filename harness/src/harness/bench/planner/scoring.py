# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How good an answer is, by rules that share no code with any planner.

An expert's load is split evenly over its replicas, and rank r of S slots owns slots rS … (r + 1)S − 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]
    Slots = NDArray[np.int64]  # [L, P], the logical expert in each slot


@dataclass(frozen=True)
class Violations:
    """What an answer breaks of the contract of a placement.

    Attributes:
        missing: experts without a slot, over all layers; a slot with an impossible expert counts as one too.
        twice: slots that hold an expert which their rank holds already, over all layers.
        split: groups with experts on more than one node, where the groups divide by the nodes.
    """

    missing: int
    twice: int
    split: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.missing + self.twice + self.split


def rank_loads(slots: Slots, load: Float64Array, ep_size: int) -> Float64Array:
    """Return the tokens of each rank: float64 [L, R] for slots [L, P] and load [L, E]."""
    num_layers, num_experts = load.shape
    offset = np.arange(num_layers)[:, None] * num_experts
    count = np.bincount((slots + offset).ravel(), minlength=load.size).reshape(load.shape)
    share = load / np.maximum(count, 1)
    summed: Float64Array = (
        np.take_along_axis(share, slots, axis=1).reshape(num_layers, ep_size, -1).sum(axis=2)
    )
    return summed


def gap_percent(slots: Slots, load: Float64Array, ep_size: int, bound: Float64Array) -> float:
    """Return how far the hottest ranks are above the bound, in %, as the mean over layers.

    Args:
        slots: int64 [L, P].
        load: float64 [L, E].
        ep_size: R.
        bound: float64 [L], which no placement's hottest rank can go below; where the mean over ranks is
            larger, that is taken.
    """
    loads = rank_loads(slots, load, ep_size)
    floor = np.maximum(bound, loads.mean(axis=1))
    return float((loads.max(axis=1) / floor - 1.0).mean() * 100)


def balancedness(slots: Slots, load: Float64Array, ep_size: int) -> float:
    """Return the mean over layers of mean / max rank load."""
    loads = rank_loads(slots, load, ep_size)
    return float((loads.mean(axis=1) / loads.max(axis=1)).mean())


def balancedness_over_time(slots: Slots, windows: Float64Array, ep_size: int) -> float:
    """Return the sum over windows and layers of mean rank load over that of max rank load.

    Args:
        slots: int64 [L, P].
        windows: float64 [windows, L, E].
        ep_size: R.
    """
    loads = np.stack([rank_loads(slots, load, ep_size) for load in windows])  # [windows, L, R]
    return float(loads.mean(axis=2).sum() / loads.max(axis=2).sum())


def violations(
    slots: Slots, num_experts: int, ep_size: int, num_groups: int = 1, num_nodes: int = 1
) -> Violations:
    """Count what an answer [L, P] breaks."""
    num_layers = len(slots)
    layers = np.arange(num_layers)[:, None]
    possible = (slots >= 0) & (slots < num_experts)
    present = np.zeros((num_layers, num_experts), dtype=bool)
    present[np.broadcast_to(layers, slots.shape)[possible], slots[possible]] = True
    missing = int((~present).sum() + (~possible).sum())
    by_rank = np.sort(slots.reshape(num_layers, ep_size, -1), axis=2)
    twice = int((by_rank[:, :, 1:] == by_rank[:, :, :-1]).sum())
    split = 0
    if num_nodes > 1 and num_groups % num_nodes == 0 and not missing:
        node = np.arange(slots.shape[1]) // (slots.shape[1] // num_nodes)
        on_node = np.zeros((num_layers, num_groups, num_nodes), dtype=bool)
        on_node[layers, slots // (num_experts // num_groups), node] = True
        split = int((on_node.sum(axis=2) > 1).sum())
    return Violations(missing, twice, split)


def moved_percent(before: Slots, after: Slots, ep_size: int) -> tuple[float, float]:
    """Return the share of slots that change, and of those fetched from another rank, in %."""
    changed = before != after
    old = before.reshape(len(before), ep_size, 1, -1)
    held = (old == after.reshape(len(after), ep_size, -1, 1)).any(axis=3).reshape(after.shape)
    return float(changed.mean() * 100), float((changed & ~held).mean() * 100)
