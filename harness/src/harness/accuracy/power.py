# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many questions a margin needs: chances of the verdict's exact test, enumerated.

A chance is no smooth function of n, because counts are whole: it rises as a saw does. A size printed with ≈ has the power
asked for, as about all larger ones have; some a little larger may fall short, and a smaller one may have it too. The usual
formula, (z_α + z_power)² × discordance / margin², is what calculators print, and up to a third too small: with few discordant
questions Wald's interval, which it stands for, passes a true loss of the margin more often than α.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from harness.accuracy.statistics import chances, fewest_gains, worst_chance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from harness.accuracy.statistics import Paired

MOST_QUESTIONS = 1_000_000


@dataclass(frozen=True)
class Aim:
    """What a test should reach.

    Attributes:
        alpha: most chance of a wrong verdict.
        power: least chance of the right one.
    """

    alpha: float = 0.05
    power: float = 0.8


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
    return _chance(region(questions, margin, alpha), discordance)


def _chance(fewest: NDArray[np.int64], discordance: float) -> float:
    """Return the chance of fewest[b] ≤ c where as many are lost as gained in the long run."""
    return float(chances(fewest, 0.0, np.array([discordance / 2]))[0])


def _least(chance: Callable[[int], float], power: float, start: int) -> int | None:
    """Return about the least size at which a chance is `power`, to half a percent; None above a million.

    Args:
        chance: of a size.
        power: is wanted.
        start: a size that is no larger.
    """
    short, enough = start, max(1, start)
    while chance(enough) < power:
        short, enough = enough, math.ceil(1.1 * enough) + 1
        if enough > MOST_QUESTIONS:
            return None
    while enough - short > max(1, enough // 200):
        middle = (short + enough) // 2
        short, enough = (short, middle) if chance(middle) >= power else (middle, enough)
    return enough


def normal_size(discordance: float, margin: float, aim: Aim) -> int:
    """Return the size by the usual formula."""
    return math.ceil(float(norm.isf(aim.alpha) + norm.ppf(aim.power)) ** 2 * discordance / margin**2)


def size(discordance: float, margin: float, aim: Aim | None = None) -> int:
    """Return about how many questions show that equal arms lose less than a margin.

    Args:
        discordance: share of questions whose outcome differs, in (0, 1).
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
    # The exact size is no smaller, and what is far too large is not enumerated.
    start = int(0.95 * normal_size(discordance, margin, aim))
    found = None
    if start <= MOST_QUESTIONS:
        found = _least(lambda n: chance_no_worse(n, margin, discordance, aim.alpha), aim.power, start)
    if found is None:
        msg = (
            f"a margin of {100 * margin:g} points at a discordance of {100 * discordance:g} % needs more than "
            f"{MOST_QUESTIONS:,} questions"
        )
        raise ValueError(msg)
    return found


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
        # What the further ones have to bring, after the losses and gains that were seen.
        fewest = region(seen.questions + more, margin, aim.alpha)[seen.losses :][: more + 1] - seen.gains
        return _chance(fewest, seen.discordance)

    high = 1
    while chance(high) < aim.power:
        high *= 2
        if seen.questions + high > MOST_QUESTIONS:
            return None
    return _least(chance, aim.power, high // 2)
