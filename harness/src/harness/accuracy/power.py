# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many questions a margin needs: chances of the tests in `statistics`, enumerated.

Methods, by column of the table:

- drop: McNemar's exact one-sided test finds a true drop of the margin.
- no worse: the exact test of the verdict shows that equal arms lose less than the margin.
- within ±: the same test in both directions (TOST).
- normal: the usual formula, (z_α + z_power)² × discordance / margin², with z of (1 + power) / 2 for ±. It is what
  calculators print, and up to a third too small: with few discordant questions Wald's interval, which it stands
  for, passes a true loss of the margin more often than α.

A chance is no smooth function of n, because counts are whole: it rises as a saw does. So a size is

- drop: the least n with that power, exactly.
- no worse, within ±: near the least from which the power stays, and printed with ≈. It has that power, as have larger n
  in steps of 2 % for 12 %; those between may fall a little short, and a smaller n may have it too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom, norm

from harness.accuracy.statistics import fewest_gains, worst_chance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from harness.accuracy.statistics import Paired

MOST_QUESTIONS = 1_000_000
_STEP = 1.02
# How far past the first size that is enough later ones are looked at.
_REACH = 1.12
_NEGLIGIBLE = 1e-13


@dataclass(frozen=True)
class Aim:
    """What a test should reach.

    Attributes:
        alpha: most chance of a wrong verdict.
        power: least chance of the right one.
    """

    alpha: float = 0.05
    power: float = 0.8


@dataclass(frozen=True)
class Sizes:
    """Questions needed at a discordance; None where the drop is larger than it.

    Attributes:
        discordance: share of questions whose outcome differs.
        margin: the loss, as a fraction.
        drop: the least to find a drop of the margin.
        no_worse: about as many as show that equal arms lose less.
        within: about as many as show that they differ by less.
        no_worse_normal: the usual formula for `no_worse`.
        within_normal: the usual formula for `within`.
    """

    discordance: float
    margin: float
    drop: int | None
    no_worse: int
    within: int
    no_worse_normal: int
    within_normal: int


# Few: of a million questions one takes 8 MB.
@lru_cache(maxsize=64)
def region(questions: int, margin: float, alpha: float) -> NDArray[np.int64]:
    """Return, by losses b, the fewest gains with which the verdict's test passes: int64 [n + 1].

    The critical score starts at the normal quantile and grows until the exact chance is at most alpha.
    """
    least = float(norm.isf(alpha))
    while True:
        fewest = fewest_gains(questions, margin, least)
        excess = worst_chance(fewest, margin, enough=alpha) - alpha
        if excess <= 0:
            fewest.flags.writeable = False
            return fewest
        least += max(excess / float(norm.pdf(least)), 1e-3)


def chance_no_worse(questions: int, margin: float, discordance: float, alpha: float) -> float:
    """Return the chance that equal arms pass the test of no loss of the margin."""
    return _chance(region(questions, margin, alpha), questions, discordance / 2)


def chance_within(questions: int, margin: float, discordance: float, alpha: float) -> float:
    """Return the chance that equal arms pass that test in both directions."""
    fewest = region(questions, margin, alpha)
    # (c, b) passes too where fewest[c] ≤ b: up to the last such c, as `fewest` never falls.
    most = np.searchsorted(fewest, np.arange(questions + 1), side="right") - 1
    return _chance(fewest, questions, discordance / 2, most=most)


def _chance(
    fewest: NDArray[np.int64],
    questions: int,
    p: float,
    *,
    seen: tuple[int, int] = (0, 0),
    most: NDArray[np.int64] | None = None,
) -> float:
    """Return the chance of fewest[b] ≤ c ≤ most[b] after `questions` more, each lost and gained with chance p."""
    b, chance = _likely(questions, p)
    gains = p / (1 - p) if p < 1 else 1.0
    passing = binom.sf(fewest[seen[0] + b] - 1 - seen[1], questions - b, gains)
    if most is not None:
        passing = np.maximum(passing - binom.sf(most[b], questions - b, gains), 0)
    return float((chance * passing).sum())


def chance_to_find(questions: int, drop: float, discordance: float, alpha: float) -> float:
    """Return the chance that McNemar's test finds a true drop.

    Args:
        questions: n.
        drop: p_b − p_c, at most the discordance.
        discordance: p_b + p_c.
        alpha: of the test.
    """
    discordant, chance = _likely(questions, discordance)
    return float((chance * _found(discordant, (discordance + drop) / 2 / discordance, alpha)).sum())


def _found(
    discordant: NDArray[np.int64], lost: float, alpha: float, *, drawing: bool = False
) -> NDArray[np.float64]:
    """Return the power of McNemar's test by discordant questions, of which a share `lost` is lost: float64 [N].

    Where `drawing`, the outcome just short of a find is drawn for, so that the level is alpha and no less.
    """
    # The most losses that are no find.
    most = binom.isf(alpha, discordant, 0.5)
    found: NDArray[np.float64] = binom.sf(most, discordant, lost)
    if drawing:
        share = (alpha - binom.sf(most, discordant, 0.5)) / binom.pmf(most, discordant, 0.5)
        found = found + np.clip(share, 0, 1) * binom.pmf(most, discordant, lost)
    return found


def least_to_find(drop: float, discordance: float, aim: Aim) -> int | None:
    """Return the least n with which McNemar's test finds a true drop with the power; None above a million.

    1. The test that draws is the strongest of its level, so its power bounds that of the exact one, and only grows
       with n: find by halving where it is enough.
    2. Go up from there. One question more changes a chance by at most the discordance, as one that is not discordant
       changes nothing: what cannot be enough is left out.
    """
    lost = (discordance + drop) / 2 / discordance

    def bound(questions: int) -> float:
        discordant, chance = _likely(questions, discordance)
        return float((chance * _found(discordant, lost, aim.alpha, drawing=True)).sum())

    short, size = 0, MOST_QUESTIONS
    if bound(size) < aim.power:
        return None
    while size - short > 1:
        middle = (short + size) // 2
        short, size = (short, middle) if bound(middle) >= aim.power - _NEGLIGIBLE else (middle, size)
    while size <= MOST_QUESTIONS:
        # Neighbours share the chances by discordant questions.
        last = size + size // 64
        discordant = np.arange(_likely(size, discordance)[0][0], _likely(last, discordance)[0][-1] + 1)
        found = _found(discordant, lost, aim.alpha)
        while size <= last:
            missing = aim.power - float(binom.pmf(discordant, size, discordance) @ found)
            if missing <= 0:
                return size if size <= MOST_QUESTIONS else None
            size += max(1, int(missing / discordance))
    return None


def _likely(questions: int, p: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    low, high = binom.ppf([_NEGLIGIBLE, 1 - _NEGLIGIBLE], questions, p)
    counts = np.arange(max(int(low), 0), int(high) + 1)
    return counts, binom.pmf(counts, questions, p)


def _least(chance: Callable[[int], float], power: float, start: int) -> int | None:
    """Return about the least size from which a chance stays at `power` or more; None above a million.

    At the size itself it does.

    1. Go down from the start to a size that is too small.
    2. From there, in steps of 2 %, find the first that is enough with all that follow for 12 %.
    3. Halve the step before it, to a quarter of a percent.
    """
    size, short, enough = max(start, 1), 0, None
    while size > 1 and chance(size) >= power:
        size = int(size / _REACH)
    while size <= MOST_QUESTIONS and (enough is None or size < enough * _REACH):
        if chance(size) < power:
            short, enough = size, None
        elif enough is None:
            enough = size
        size = max(size + 1, int(size * _STEP))
    if enough is None:
        return None
    while enough - short > max(1, enough // 400) and short:
        middle = (short + enough) // 2
        short, enough = (short, middle) if chance(middle) >= power else (middle, enough)
    return enough


def sizes(discordance: float, margin: float, aim: Aim | None = None) -> Sizes:
    """Return how many questions a margin needs.

    Args:
        discordance: in (0, 1).
        margin: in (0, 1).
        aim: 5 % and 80 % where it is None.

    Raises:
        ValueError: a number lies outside its range, or more than a million questions would be needed.
    """
    aim = aim or Aim()
    named = {"discordance": discordance, "margin": margin, "alpha": aim.alpha, "power": aim.power}
    for name, value in named.items():
        if not 0 < value < 1:
            msg = f"{name} is {value:g}; expected a share between 0 and 1"
            raise ValueError(msg)
    z, z_one = float(norm.isf(aim.alpha)), float(norm.ppf(aim.power))
    z_both = float(norm.ppf((1 + aim.power) / 2))
    unit = discordance / margin**2
    normal, normal_within = (math.ceil((z + other) ** 2 * unit) for other in (z_one, z_both))
    # The exact sizes are no smaller, and what is far too large is not enumerated.
    if normal > MOST_QUESTIONS:
        raise _too_many(margin, discordance)
    drop = None
    if margin <= discordance:
        drop = least_to_find(margin, discordance, aim)
    found = [
        _least(lambda n: test(n, margin, discordance, aim.alpha), aim.power, int(0.95 * start))  # noqa: B023 - called at once
        for test, start in ((chance_no_worse, normal), (chance_within, normal_within))
    ]
    no_worse, within = found
    if no_worse is None or within is None or (drop is None and margin <= discordance):
        raise _too_many(margin, discordance)
    return Sizes(discordance, margin, drop, no_worse, within, normal, normal_within)


def _too_many(margin: float, discordance: float) -> ValueError:
    return ValueError(
        f"a margin of {100 * margin:g} points at a discordance of {100 * discordance:g} % needs more than "
        f"{MOST_QUESTIONS:,} questions"
    )


def more_questions(seen: Paired, margin: float, aim: Aim | None = None) -> int | None:
    """Return how many further questions would show no loss of the margin.

    That is with the chance `aim.power` if the arms are equal on them and as discordant as on those seen, whose losses
    and gains count on; to half a percent, and some fewer may do too. Looking twice makes a wrong verdict somewhat
    likelier than alpha; judge the larger set once.

    Returns:
        None where more than a million would be needed.
    """
    aim = aim or Aim()

    def chance(more: int) -> float:
        fewest = region(seen.questions + more, margin, aim.alpha)
        return _chance(fewest, more, seen.discordance / 2, seen=(seen.losses, seen.gains))

    high = 1
    while chance(high) < aim.power:
        high *= 2
        if seen.questions + high > MOST_QUESTIONS:
            return None
    low = high // 2
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= aim.power else (middle, high)
    return high


def table(margins: Sequence[float], discordances: Sequence[float], aim: Aim | None = None) -> list[Sizes]:
    """Return `sizes` of every margin and discordance, margin by margin."""
    return [sizes(discordance, margin, aim) for margin in margins for discordance in discordances]
