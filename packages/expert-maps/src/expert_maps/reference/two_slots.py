# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Two slots on every rank: counts whose copies pair up. The twin of ``native/two_slots.c``.

Sorted, the largest copy pairs best with the smallest, the next largest with the next smallest. All pairs carry at most T
exactly when for every a up to T / 2 there are as many copies of size a or less as there are larger than T − a. Put an
expert of load w with c copies at min(w / c, T − w / c) and let it count +c where w / c is the smaller of both, −c where
it is not: then no sum from the left may be negative. (Hall's condition, or brackets that close.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.reference.layer import heaviest_first

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.reference.layer import Layer

    Sums = NDArray[np.int64]

# Positions are bins of [0, T / 2]; the last one is T / 2 itself.
BINS = 256
# The best single changes that are tried in pairs.
_NEAR = 5
_TRIES = 64
# Copies that may be moved: 0.06 / tolerance, within these limits.
_EFFORT, _LEAST_MOVES, _MOST_MOVES = 0.06, 6, 60
_TWO = 2


def has_two_slots(layer: Layer) -> bool:
    """Whether every rank has two slots, and the counts are not beyond what 16 bits hold."""
    return all(slots == _TWO for slots in layer.capacity) and layer.num_slots < 16000  # noqa: PLR2004


def step(load: float, copies: int, target: float) -> tuple[int, int]:
    """Return what some copies count, and from which bin on: rounded so that pairs which seem to fit do fit.

    A smaller copy is rounded up, a larger one down: it comes to stand before those that could close its bracket.
    """
    size, scale = load / copies, 2 * BINS / target
    if size <= target / 2:
        place = size * scale
        position = int(place) + (int(place) < place)
        return min(position, BINS), copies
    place = (target - size) * scale
    return (0 if place < 0 else min(int(place), BINS)), -copies


def _counted(sums: Sums, old: tuple[int, int], new: tuple[int, int]) -> Sums:
    """Return the sums from the left once an expert counts otherwise."""
    changed = sums.copy()
    changed[old[0] :] -= old[1]
    changed[new[0] :] += new[1]
    return changed


def _missing(sums: Sums) -> int:
    """Return how much is missing: what the negative sums add up to."""
    return -int(np.minimum(sums, 0).sum())


@dataclass
class _State:
    """Counts that are tried for a target, and their sums from the left, [BINS + 1]."""

    layer: Layer
    target: float
    sums: Sums

    def own(self, expert: int, more: int = 0) -> tuple[int, int]:
        return step(self.layer.weight[expert], self.layer.count[expert] + more, self.target)

    def with_copies(self, expert: int, more: int, sums: Sums | None = None) -> Sums:
        before = self.sums if sums is None else sums
        return _counted(before, self.own(expert), self.own(expert, more))


def fold(layer: Layer) -> float:
    """Return the hottest pair of these counts, if the largest copy is paired with the smallest and so on."""
    order = heaviest_first(layer.shares())
    copies = [expert for expert in order for _ in range(layer.count[expert])]
    half = layer.num_slots // 2
    pairs = zip(copies[:half], reversed(copies), strict=False)
    return max((layer.share(a) + layer.share(b) for a, b in pairs), default=0.0)


def reach(layer: Layer, target: float, moves: int) -> tuple[bool, int]:
    """Move copies between experts until all pairs keep to the target, as far as ``moves`` suffice.

    Returns:
        Whether they do, and the moves that are left. The counts are changed either way.
    """
    if any(share > target for share in layer.shares()):
        return False, moves
    # 1. What every expert counts, summed from the left.
    state = _State(layer, target, np.zeros(BINS + 1, dtype=np.int64))
    for expert in range(layer.num_experts):
        position, value = state.own(expert)
        state.sums[position] += value
    state.sums = np.cumsum(state.sums)
    # 2. As long as something is missing: a copy from one expert to another.
    while _missing(state.sums) > 0 and moves > 0:
        moved = _move_copies(state)
        if not moved:
            return False, moves
        moves -= moved
    return _missing(state.sums) == 0, moves


def _move_copies(state: _State) -> int:
    """Move copies between the experts of whom a copy more, or one less, does best alone; returns how many."""
    layer = state.layer
    everyone = range(layer.num_experts)
    gain = [(_missing(state.with_copies(e, 1)), e) for e in everyone if layer.count[e] < layer.num_ranks]
    lose = [
        (_missing(state.with_copies(e, -1)), e)
        for e in everyone
        if layer.count[e] > 1 and layer.share(e, -1) <= state.target
    ]
    more = [expert for _, expert in sorted(gain)[:_NEAR]]
    fewer = [expert for _, expert in sorted(lose)[:_NEAR]]
    moved = 0
    while True:
        # 1. The pair after which least is missing.
        best, pair = _missing(state.sums), None
        for a in more:
            gained = state.with_copies(a, 1)
            for b in fewer:
                if a != b and (value := _missing(state.with_copies(b, -1, gained))) < best:
                    best, pair = value, (a, b)
        if pair is None:
            return moved
        # 2. Move the copy; each of both is not looked at again.
        a, b = pair
        state.sums = state.with_copies(b, -1, state.with_copies(a, 1))
        layer.count[a] += 1
        layer.count[b] -= 1
        _strike(more, a)
        _strike(fewer, b)
        _strike(fewer, a)
        _strike(more, b)
        moved += 1


def _strike(experts: list[int], expert: int) -> None:
    """Strike an expert from a list; the last one takes its place."""
    if expert in experts:
        experts[experts.index(expert)] = experts[-1]
        experts.pop()


def search_counts(layer: Layer, bound: float, tolerance: float) -> None:
    """Change the counts so that the hottest pair comes as near to the bound as can be.

    Args:
        layer: with counts; only these change.
        bound: what no placement is below.
        tolerance: how near is near enough; a looser one also gives up earlier.
    """
    goal = bound * (1 + tolerance)
    moves = int(min(max(_EFFORT / tolerance, _LEAST_MOVES), _MOST_MOVES))
    reached = fold(layer)
    target = bound + 0.5 * (reached - bound)
    for _ in range(_TRIES):
        if reached <= goal or moves <= 0:
            return
        # 1. Try a target between the bound and what is reached.
        target = max(target, goal)
        kept = list(layer.count)
        ok, moves = reach(layer, target, moves)
        # 2. Keep the counts if they pair up cooler.
        now = fold(layer)
        if not ok and now >= reached:
            layer.count = kept
        else:
            reached = target if ok and now > target else now
        # 3. Reached: a lower target. Not reached: a higher one, until both are near.
        if ok:
            target = bound + 0.6 * (reached - bound)
        else:
            target = (target + reached) / 2
            if reached - target < 0.003 * bound:
                return
