# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Restarts: change a few slots at random, and descend again. The twin of ``kick_and_descend`` in ``native/descent.c``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.reference.descent import descend

if TYPE_CHECKING:
    from expert_maps.reference.descent import Goal
    from expert_maps.reference.layer import Layer

_SEED = 2463534242
_CHANGES = 3


class Random:
    """Marsaglia's xorshift of 32 bits, the same every time: the same load gives the same plan."""

    def __init__(self) -> None:
        """Begin with the seed of its author's paper."""
        self.state = _SEED

    def below(self, most: int) -> int:
        """Return a number from 0 to ``most`` − 1."""
        state = self.state
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        self.state = state
        return state % most


def kick_and_descend(layer: Layer, goal: Goal, kicks: int) -> bool:
    """Kick, descend, and keep what is no worse, until the target is met; returns whether it is."""
    random = Random()
    while kicks > 0 and layer.peak > goal.target and goal.steps > 0 and layer.num_ranks > 1:
        kicks -= 1
        # 1. Remember what there is.
        saved = layer.copy()
        # 2. Change three slots, one of the hottest rank's among them.
        recount = layer.num_slots > layer.num_experts
        for change in range(_CHANGES):
            first = random.below(layer.num_ranks) if change else layer.hottest
            _kick(layer, random, first, random.below(layer.num_ranks), recount=recount)
        # 3. Descend; go back where that ends hotter.
        if not descend(layer, goal) and layer.peak > saved.peak:
            layer.take(saved)
    return layer.peak <= goal.target


def _kick(layer: Layer, random: Random, a: int, b: int, *, recount: bool) -> None:
    """Swap an expert of one rank with one of another, or give the first a copy of the second's."""
    if a == b or not layer.slots[a] or not layer.slots[b]:
        return
    given = layer.slots[a][random.below(len(layer.slots[a]))]
    taken = layer.slots[b][random.below(len(layer.slots[b]))]
    if recount and random.below(3) == 0:
        if layer.count[given] > 1 and layer.count[taken] < layer.num_ranks and a not in layer.holders[taken]:
            layer.drop_copy(a, given)
            layer.add_copy(a, taken)
    elif given != taken and layer.fits(b, given) and layer.fits(a, taken):
        layer.swap(a, b, given, taken)
