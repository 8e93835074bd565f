# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Start from the placement in use: copies stay where that is possible. The twin of ``native/incremental.c``.

This is also `rescale`: ranks that are gone hold nothing any more, new ones nothing yet, and slots may be fewer or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_maps.reference.layer import Layer, heaviest_first

if TYPE_CHECKING:
    from collections.abc import Sequence

# How much a rank's load weighs beside the harm of losing a copy there.
_LOAD_WEIGHT = 1e-3


def start_from(layer: Layer, held: Sequence[Sequence[int]]) -> None:
    """Take over the present copies.

    Args:
        layer: its slots are filled, beyond their capacity where a rank has fewer than before.
        held: [R], the experts on each rank now; an expert twice on a rank counts once.
    """
    layer.clear()
    layer.was = [set(experts) for experts in held]
    layer.holders = [
        [rank for rank in range(layer.num_ranks) if expert in layer.was[rank]]
        for expert in range(layer.num_experts)
    ]
    layer.count = [len(holders) for holders in layer.holders]
    for expert, holders in enumerate(layer.holders):
        for rank in holders:
            layer.insert(rank, expert)
    layer.sort_ranks()


def complete(layer: Layer) -> None:
    """Make the present copies a placement; all arrivals that this takes are unavoidable."""
    # 1. Ranks with too many copies give up those that are missed least, but a copy is kept of as many experts as can be.
    if any(len(slots) > room for slots, room in zip(layer.slots, layer.capacity, strict=True)):
        keep = _Keep(layer)
        for rank, room in enumerate(layer.capacity):
            while len(layer.slots[rank]) > room:
                layer.drop_copy(rank, _dispensable(layer, rank, keep))
    # 2. Experts of which no copy is left get a slot, the heaviest first.
    for expert in heaviest_first(layer.weight):
        if not layer.count[expert]:
            place = _room(layer, expert)
            layer.add_copy(_make_place(layer) if place is None else place, expert)
    # 3. Empty slots get copies of the experts with the largest shares.
    while (free := _room(layer)) is not None:
        wanted = [expert for expert in range(layer.num_experts) if free not in layer.holders[expert]]
        layer.add_copy(free, max(wanted, key=layer.share))


def arrivals(layer: Layer) -> int:
    """Return how many experts stand on ranks that did not hold them."""
    return sum(layer.arrival(rank, expert) for rank, slots in enumerate(layer.slots) for expert in slots)


@dataclass
class _Keep:
    """One copy of each expert that is kept for it, as far as ranks have room: a matching by augmenting paths."""

    layer: Layer
    rank: list[int] = field(default_factory=list)  # [E], where that copy is; -1 for none
    used: list[int] = field(default_factory=list)  # [R], how many a rank keeps

    def __post_init__(self) -> None:
        self.rank, self.used = [-1] * self.layer.num_experts, [0] * self.layer.num_ranks
        for expert in range(self.layer.num_experts):
            self.find(expert, set())

    def find(self, expert: int, seen: set[int]) -> bool:
        """Keep a copy of the expert; what others keep moves where that makes room."""
        for rank in self.layer.holders[expert]:
            if rank in seen:
                continue
            seen.add(rank)
            if self.used[rank] < self.layer.capacity[rank]:
                self.used[rank] += 1
            elif not any(
                self.rank[other] == rank and self.find(other, seen) for other in self.layer.slots[rank]
            ):
                continue
            self.rank[expert] = rank
            return True
        return False


def _harm(layer: Layer, expert: int) -> float:
    """Return by how much each other copy gets heavier without one of them; the whole load without the last."""
    if layer.count[expert] > 1:
        return layer.share(expert, -1) - layer.share(expert)
    return layer.weight[expert]


def _dispensable(layer: Layer, rank: int, keep: _Keep | None = None) -> int:
    """Return the copy whose loss does least harm, -1 if there is none; what is kept stays, and so does a last copy."""
    best, least = -1, math.inf
    for expert in layer.slots[rank]:
        stays = layer.count[expert] == 1 if keep is None else keep.rank[expert] == rank
        if not stays and _harm(layer, expert) < least:
            best, least = expert, _harm(layer, expert)
    return best


def _room(layer: Layer, expert: int | None = None) -> int | None:
    """Return the lightest rank with an empty slot that lacks the expert, None if there is none."""
    for rank in layer.order:
        if len(layer.slots[rank]) < layer.capacity[rank] and (
            expert is None or rank not in layer.holders[expert]
        ):
            return rank
    return None


def _make_place(layer: Layer) -> int:
    """Empty a slot where that does least harm, and return its rank."""
    best, least = -1, math.inf
    for rank in range(layer.num_ranks):
        expert = _dispensable(layer, rank)
        if expert >= 0:
            harm = _harm(layer, expert) + _LOAD_WEIGHT * layer.load[rank]
            if harm < least:
                best, least = rank, harm
    layer.drop_copy(best, _dispensable(layer, best))
    return best
