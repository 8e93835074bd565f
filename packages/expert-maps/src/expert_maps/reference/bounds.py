# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What no placement's hottest rank can be below. The twin of ``native/bound.c``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from expert_maps.reference.layer import add_up

if TYPE_CHECKING:
    from expert_maps.reference.layer import Layer

# A hair's breadth: else a load that is above a size by rounding alone could never be split below it.
_HAIR = 1e-12
_BISECTIONS = 40
_NEAR_ENOUGH = 1e-7


def mean_bound(layer: Layer) -> float:
    """Return the mean rank load: not every rank can be below it."""
    return add_up(layer.weight) / layer.num_ranks


def copies_above(layer: Layer, size: float) -> int:
    """Return how many copies must carry more than ``size`` at least, whatever the counts.

    An expert with w > size is brought below it by ⌈w / size⌉ copies. With too few slots for all, as many as possible
    are split, the cheapest first; each that is left counts once.
    """
    budget = layer.num_slots - layer.num_experts
    # 1. The experts above the size, and how many further copies each would take.
    loads = [load for load in layer.weight if load * (1 - _HAIR) > size]
    above = len(loads)
    prices: list[int] = []
    for load in loads:
        copies = math.ceil(load / size * (1 - _HAIR)) if size > 0 else math.inf
        if copies <= layer.num_ranks and copies - 1 <= budget:
            prices.append(int(copies) - 1)
    # 2. Buy the cheapest.
    for price in sorted(price for price in prices if price > 0):
        if price <= budget:
            budget -= price
            above -= 1
    return above


def replica_bound(layer: Layer, bound: float) -> float:
    """Return the bound from single copies where it is more than the bound so far.

    Among k·R + 1 copies some rank holds k + 1 (the pigeonhole principle). Take the k·R + 1 largest: that rank carries
    k + 1 times the smallest of them, and its other slots are not empty either.

    Args:
        layer: only its loads and slots are looked at.
        bound: what is proved already.
    """
    slots, ranks, experts = min(layer.capacity), layer.num_ranks, layer.num_experts
    most_copies = min(ranks, layer.num_slots - experts + 1)
    smallest = sorted(load / most_copies for load in layer.weight)
    for k in range(slots):
        if k * ranks >= layer.num_slots:
            break
        # 1. The other slots of that rank carry at least the smallest copies there can be.
        companions = add_up(smallest[: slots - k - 1])
        # 2. The largest size above which more than k·R copies must stay.
        low, high = (bound - companions) / (k + 1), max(layer.weight)
        if low >= high or (low > 0 and copies_above(layer, low) <= k * ranks):
            continue  # nothing to gain
        low = max(low, 0.0)
        for _ in range(_BISECTIONS):
            if high - low <= high * _NEAR_ENOUGH:
                break
            middle = (low + high) / 2
            if copies_above(layer, middle) > k * ranks:
                low = middle
            else:
                high = middle
        # 3. That many of them on one rank, with its companions.
        bound = max(bound, (k + 1) * low + companions)
    return bound
