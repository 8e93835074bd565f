# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Make the hottest rank cooler, step after step. The twin of ``native/descent.c`` and ``native/pairs.c``."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_maps.reference.layer import Layer

    What = TypeVar("What")

# Pairs are swapped on ranks of so many slots: with two that is ranks changing places, and beyond single swaps always do.
FEWEST_PAIRED, MOST_PAIRED = 3, 20


@dataclass
class Goal:
    """When a descent ends.

    Attributes:
        target: the load that the hottest rank should come down to.
        least: improvements below this are noise.
        steps: that may still be made.
        recount: whether experts may get other counts.
    """

    target: float
    least: float
    steps: int
    recount: bool = True


def descend(layer: Layer, goal: Goal) -> bool:
    """Improve the hottest rank until the target is met, or no step helps; returns whether it is met."""
    while goal.steps > 0:
        goal.steps -= 1
        if layer.peak <= goal.target:
            return True
        # 1. A swap of one for one, or of two for two. 2. Without one, another split of the copies.
        if swap_once(layer, goal):
            continue
        if goal.recount and reassign_once(layer, goal):
            continue
        break
    return layer.peak <= goal.target


def swap_once(layer: Layer, goal: Goal) -> bool:
    """Make the best swap of one expert for one, or of two for two where that is better; whether there was any."""
    hot = layer.hottest
    value = layer.load[hot] - goal.least
    one = _best_swap(layer, goal.target, value, _singles)
    if one is not None:
        value = one[0]
    two = None
    if value > goal.target and FEWEST_PAIRED <= layer.widest <= MOST_PAIRED:
        two = _best_swap(layer, goal.target, value, _pairs)
    best = two or one
    if best is None:
        return False
    _, cold, given, taken = best
    for give, take in zip(given, taken, strict=True):
        layer.swap(hot, cold, give, take)
    return True


def _singles(layer: Layer, rank: int) -> list[tuple[float, tuple[int, ...]]]:
    return [(layer.share(expert), (expert,)) for expert in layer.slots[rank]]


def _pairs(layer: Layer, rank: int) -> list[tuple[float, tuple[int, ...]]]:
    """Return every two experts of a rank with what both carry, the lightest first."""
    pairs = [(layer.share(a) + layer.share(b), (a, b)) for a, b in combinations(layer.slots[rank], 2)]
    return sorted(pairs, key=lambda pair: pair[0])


def _best_swap(
    layer: Layer,
    target: float,
    value: float,
    parcels: Callable[[Layer, int], list[tuple[float, tuple[int, ...]]]],
) -> tuple[float, int, tuple[int, ...], tuple[int, ...]] | None:
    """Find the swap with the coolest hotter rank of both, below ``value``; the first that meets the target will do.

    Returns:
        (what the hotter of both then carries, the other rank, what the hottest gives, what it takes), or None.
    """
    hot, best = layer.hottest, None
    give = parcels(layer, hot)
    for cold in layer.order[:-1]:
        # Both level is the best there is, and the lightest ranks come first: the rest can do no better.
        mean = (layer.load[hot] + layer.load[cold]) / 2
        if mean >= value:
            break
        half = (layer.load[hot] - layer.load[cold]) / 2
        found = nearest(give, parcels(layer, cold), half, (mean, value - mean, target), _allowed(layer, cold))
        if found is not None:
            value = found[0]
            best = (value, cold, found[1], found[2])
            if value <= target:
                break
    return best


def _allowed(layer: Layer, cold: int) -> Callable[[tuple[int, ...], tuple[int, ...]], bool]:
    """Whether what is swapped fits: no expert stands on a rank twice afterwards."""

    def allowed(given: tuple[int, ...], taken: tuple[int, ...]) -> bool:
        if len(given) == 1 and given == taken:
            return False
        fits = (
            layer.fits(cold, a) and layer.fits(layer.hottest, b) for a, b in zip(given, taken, strict=True)
        )
        return all(fits)

    return allowed


def nearest(
    give: Sequence[tuple[float, What]],
    take: Sequence[tuple[float, What]],
    half: float,
    limits: tuple[float, float, float],
    allowed: Callable[[What, What], bool],
) -> tuple[float, What, What] | None:
    """Find what to give and to take so that the difference is as near to ``half`` as possible.

    Args:
        give: (load, what) of the hottest rank, ascending.
        take: the same of the other one.
        half: half of the difference of both ranks' loads: with it both would be level.
        limits: (their mean, how far off a swap may be, what meets the target).
        allowed: whether a swap keeps the rules.

    Returns:
        (the load of the hotter rank then, what is given, what is taken), or None.
    """
    mean, limit, target = limits
    best = None
    for given_load, given in give:
        wanted = given_load - half
        lowest = wanted - limit
        for taken_load, taken in take:
            if taken_load <= lowest:
                continue
            if taken_load >= wanted + limit:
                break
            miss = abs(taken_load - wanted)
            if miss >= limit or not allowed(given, taken):
                continue
            limit, best = miss, (mean + miss, given, taken)
            if mean + miss <= target:
                return best
    return best


@dataclass
class _Reassignment:
    """The best so far: ``rank`` holds ``added`` in place of ``dropped``; the hottest rank that this touches is ``value``."""

    value: float
    rank: int = -1
    dropped: int = -1
    added: int = -1
    weighed: bool = False  # whether any was looked at

    def take(self, value: float, rank: int, dropped: int, added: int) -> None:
        """Weigh another one, and keep it where it is cooler."""
        self.weighed = True
        if value < self.value:
            self.value, self.rank, self.dropped, self.added = value, rank, dropped, added


def reassign_once(layer: Layer, goal: Goal) -> bool:
    """Give a slot to another expert, so that the hottest rank and all that get hotter are cooler than it was."""
    best = _Reassignment(layer.peak - goal.least)
    _relieve(layer, goal.target, best)
    if best.value > goal.target:
        _exchange(layer, goal.target, best)
    if best.rank < 0:
        return False
    layer.drop_copy(best.rank, best.dropped)
    layer.add_copy(best.rank, best.added)
    return True


def _hottest_touched(layer: Layer, rank: int, dropped: int, added: int) -> float:
    """Return the hottest of the rank and those that hold ``dropped``: the others only get lighter."""
    rise = layer.share(dropped, -1) - layer.share(dropped)
    fresh = layer.share(added, 1)
    fall = layer.share(added) - fresh
    value = layer.load[rank] - layer.share(dropped) + fresh
    for holder in layer.holders[dropped]:
        if holder != rank:
            value = max(value, layer.load[holder] + rise - (fall if holder in layer.holders[added] else 0))
    return value


def _relieve(layer: Layer, target: float, best: _Reassignment) -> None:
    """One of the hottest rank's experts gets another copy, in place of some other expert's copy elsewhere."""
    hot = layer.hottest
    for added in reversed(layer.slots[hot]):
        if layer.count[added] >= layer.num_ranks:
            continue
        cooled = layer.load[hot] - layer.share(added) + layer.share(added, 1)
        if cooled >= best.value:
            continue
        for dropped in range(layer.num_experts):
            if layer.count[dropped] > 1 and dropped != added:
                _consider_copies(layer, (dropped, added), cooled, target, best)
                if best.value <= target and best.weighed:
                    return


def _consider_copies(
    layer: Layer, step: tuple[int, int], cooled: float, target: float, best: _Reassignment
) -> None:
    """Weigh ``added`` in place of each copy of ``dropped`` outside of the hottest rank, which then carries ``cooled``."""
    hot, (dropped, added) = layer.hottest, step
    if hot in layer.holders[dropped]:  # its copy there gets heavier
        cooled += layer.share(dropped, -1) - layer.share(dropped)
    for rank in layer.holders[dropped]:
        if cooled >= best.value:
            return
        if rank == hot or rank in layer.holders[added]:
            continue
        best.take(max(cooled, _hottest_touched(layer, rank, dropped, added)), rank, dropped, added)
        if best.value <= target:
            return


def _exchange(layer: Layer, target: float, best: _Reassignment) -> None:
    """The hottest rank gives up a copy for one of a lighter expert."""
    hot = layer.hottest
    for dropped in layer.slots[hot]:
        if layer.count[dropped] < 2:  # noqa: PLR2004 - the last copy stays
            continue
        for added in range(layer.num_experts):
            if layer.count[added] >= layer.num_ranks or layer.share(added, 1) >= layer.share(dropped):
                continue
            if hot in layer.holders[added]:
                continue
            best.take(_hottest_touched(layer, hot, dropped, added), hot, dropped, added)
            if best.value <= target:
                return
