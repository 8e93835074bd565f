# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""On which rank every copy sits at first. The twin of ``pack`` in ``native/pack.c``.

Source: longest processing time first (Graham, 1969), here in rounds: every rank takes one copy a round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.reference.layer import heaviest_first

if TYPE_CHECKING:
    from expert_maps.reference.layer import Layer

# With more ranks than these a round is sorted by digits, with fewer exactly.
_FEW_RANKS = 64


def pack(layer: Layer) -> None:
    """Place all copies, the heaviest first, each round from the lightest rank to the hottest.

    Args:
        layer: with its counts; its slots are filled.
    """
    layer.clear()
    waiting = _next_round(layer, list(range(layer.num_ranks))[::-1])
    served: list[int] = []  # ranks that have had their copy of this round
    # 1. Experts from the largest share to the smallest; copies of one follow each other.
    for expert in heaviest_first(layer.shares()):
        for _ in range(layer.count[expert]):
            # 2. All have had a copy: the next round begins.
            if not waiting:
                waiting, served = _next_round(layer, served), []
            # 3. The first rank that lacks the expert takes it.
            free = [rank for rank in waiting if expert not in layer.slots[rank]]
            if not free and served:  # all that wait hold it: the next round begins early
                waiting, served = _next_round(layer, served + waiting), []
                free = [rank for rank in waiting if expert not in layer.slots[rank]]
            if free:
                rank = free[0]
                waiting.remove(rank)
                served.append(rank)
                _append(layer, rank, expert)
                continue
            # 4. All ranks with room hold it: another copy moves to make room on a rank without it.
            _make_room(layer, expert, waiting[0])
            if len(layer.slots[waiting[0]]) == layer.capacity[waiting[0]]:
                served.append(waiting.pop(0))
    # 5. On each rank the smallest share first.
    for slots in layer.slots:
        slots.reverse()
        slots.sort(key=layer.share)
    layer.sort_ranks()


def _append(layer: Layer, rank: int, expert: int) -> None:
    layer.slots[rank].append(expert)
    layer.holders[expert].append(rank)
    layer.load[rank] += layer.share(expert)


def _next_round(layer: Layer, served: list[int]) -> list[int]:
    """Return the ranks that still have room, the lightest first; among equal ones, the last served first."""
    old = [rank for rank in reversed(served) if len(layer.slots[rank]) < layer.capacity[rank]]
    if len(old) > _FEW_RANKS:
        return [old[i] for i in reversed(heaviest_first([layer.load[rank] for rank in old]))]
    return sorted(old, key=layer.load.__getitem__)


def _make_room(layer: Layer, expert: int, room: int) -> None:
    """Place a copy on the first rank that lacks the expert, where another one leaves for ``room``.

    That rank is full and ``room`` is not, so it has an expert that ``room`` lacks.
    """
    for rank, slots in enumerate(layer.slots):
        if expert in slots:
            continue
        for other in slots:
            if other in layer.slots[room]:
                continue
            slots.remove(other)
            layer.load[rank] -= layer.share(other)
            layer.holders[other][layer.holders[other].index(rank)] = room
            layer.slots[room].append(other)
            layer.load[room] += layer.share(other)
            _append(layer, rank, expert)
            return
    msg = "no rank can make room"
    raise AssertionError(msg)
