# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Two slots on every rank: what no counts can go below. The twin of ``native/two_slot_bound.c``.

If a placement keeps to T, every sum from the left of `two_slots` is 0 or more, and the counts add up to P. Weigh these
conditions with multipliers m ≥ 0 that add up to 1, and a slot with a price. Then every expert can choose its count by
itself: the one for which (what it counts, weighed) − price · count is most. If even the best choices, with price · P, add up
to less than nothing, no placement keeps to T. That holds for any multipliers, however they were found.

Sources: Lagrangian relaxation; multiplicative weights (Arora, Hazan, Kale, 2012) with Polyak's steps (1969).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from expert_maps.reference.two_slots import BINS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.reference.layer import Layer

    Floats = NDArray[np.float64]

# Counts that are looked at one by one; more copies are bounded together.
_CHOICES = 8
_ROUNDS = 80
_BISECTIONS = 6
# Less than nothing by more than rounding.
_NOTHING = 1e-9
# Of the steps; what converged soonest on trial.
_MULTIPLIER_STEP, _PRICE_STEP, _OVERSHOOT, _MOST_CHANGE = -30.0, 10.0, 0.005, 50.0


class Choice(NamedTuple):
    """What an expert counts with some copies, and from which bin on; 0 where a copy alone is too large."""

    bin: int
    value: int


@dataclass
class Multipliers:
    """The multiplier of each condition, [BINS + 1], and the price of a slot."""

    weight: Floats
    price: float = 0.0


def choose_bin(load: float, copies: int, target: float) -> Choice:
    """Return what some copies count, rounded so that the conditions only become weaker.

    The other way than in `two_slots.step`: a smaller copy is rounded down, a larger one up.
    """
    size, scale = load / copies, 2 * BINS / target
    if size > target * (1 + 1e-12):
        return Choice(0, 0)
    smaller = size <= target / 2
    position = math.floor(size * scale) if smaller else math.ceil((target - size) * scale)
    return Choice(min(max(position, 0), BINS), copies if smaller else -copies)


def _best_choice(
    options: list[Choice], tail: Choice, most: int, above: Floats, price: float
) -> tuple[float, Choice, int] | None:
    """Let one expert choose its count; returns (its worth, what it counts, its copies), None if no count fits."""
    best, chosen, copies = -math.inf, Choice(0, 0), 0
    for count, option in enumerate(options[:most], start=1):
        if option.value:
            worth = option.value * float(above[option.bin]) - price * count
            if worth > best:
                best, chosen, copies = worth, option, count
    # More copies than are looked at one by one: each is worth at most what the smallest possible one is.
    if tail.value:
        each = (float(above[tail.bin]) if tail.value > 0 else 0.0) - price
        count = most if each > 0 else _CHOICES + 1
        if count * each > best:
            best, chosen, copies = count * each, Choice(tail.bin, count if tail.value > 0 else 0), count
    return (best, chosen, copies) if copies else None


def is_impossible(layer: Layer, target: float, most: int, multipliers: Multipliers) -> bool:
    """Whether multipliers are found that prove: no placement keeps to the target."""
    slots = layer.num_slots
    options = [[choose_bin(load, c, target) for c in range(1, _CHOICES + 1)] for load in layer.weight]
    tails = [choose_bin(load, most, target) if most > _CHOICES else Choice(0, 0) for load in layer.weight]
    m = multipliers
    for _ in range(_ROUNDS):
        # 1. A copy at a bin is counted by every condition from there on.
        above = np.cumsum(m.weight[::-1])[::-1]
        total = above[0]
        above, m.weight = above / total, m.weight / total
        # 2. Every expert chooses.
        value, used, sums = m.price * slots, 0, np.zeros(BINS + 1)
        for option, tail in zip(options, tails, strict=True):
            found = _best_choice(option, tail, most, above, m.price)
            if found is None:
                return True  # this expert has no count that keeps to the target
            value += found[0]
            used += found[2]
            sums[found[1].bin] += found[1].value
        sums = np.cumsum(sums)
        # 3. Less than nothing: it is proved.
        if value < -_NOTHING * slots:
            return True
        # 4. Else conditions that are broken weigh more, and a slot costs more where too many are used.
        largest, unused = max(float(np.abs(sums).max()), 1e-300), slots - used
        step = (value + _OVERSHOOT * slots) / (largest * largest + 10 * unused * unused)
        change = np.minimum(_MULTIPLIER_STEP * step * sums, _MOST_CHANGE)
        m.weight = m.weight * np.array([math.exp(each) for each in change]) + 1e-12
        m.price -= _PRICE_STEP * step * unused
    return False


def two_slot_bound(layer: Layer, low: float, high: float, tolerance: float) -> float:
    """Return the largest load below ``high`` that is proved impossible, by bisection; ``low`` if none is."""
    most = min(layer.num_ranks, layer.num_slots - layer.num_experts + 1)
    multipliers = Multipliers(np.ones(BINS + 1))
    for _ in range(_BISECTIONS):
        if high <= low * (1 + tolerance):
            break
        middle = (low + high) / 2
        before = Multipliers(multipliers.weight.copy(), multipliers.price)
        if is_impossible(layer, middle, most, multipliers):
            low = middle
        else:
            multipliers, high = before, middle
    return low
