# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Two arms on the same questions: exact tests and limits of a paired difference.

Of n questions, b are lost (right in the baseline, wrong in the arm) and c gained. (b, c) is trinomial with chances
p_b and p_c; the loss is δ = p_b − p_c.

1. Is the arm worse at all? McNemar's exact test: of b + c discordant questions, b or more lost by a fair coin.
2. Is the loss below a margin M? Non-significance in 1 says nothing about that. Outcomes are ordered by Tango's score
   of δ = M (Tango, Statistics in Medicine 17, 1998), and the p-value is the largest chance, over every p_c that
   δ = M allows, of an outcome at least as good as the one seen (Chan and Zhang, Biometrics 55, 1999). This never
   passes a true loss of M more often than α, for any n and discordance; `power.sizes` enumerates it. Tango's score
   with the normal quantile passes up to 6 % at α = 5 %.
   With b = c = 0 the limit is 1 − α^(1/n), as for a single proportion.
3. Tango's interval of the difference, which is what papers print; no verdict hangs on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom, binomtest, norm

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Float64Array = NDArray[np.float64]
    Int64Array = NDArray[np.int64]

# Two outcomes with the same score differ by rounding.
_TIE = 1e-9
# Values of the nuisance p_c: a rough grid, then finer ones around its highest points. Beside a grid of 3,000 values the
# chance is too small by at most 1e-5.
_GEOMETRIC, _COSINE, _FINE, _PEAKS = 40, 40, 12, 2
# What lies further from the mean of a binomial has a chance below 1e-10.
_DEVIATIONS = 6.5
_SLACK = 12
# Values of p_c that share a window of b: neighbours need windows of about the same width.
_TOGETHER = 12
_HALVINGS = 40
_EXACT = 1e-7


@dataclass(frozen=True)
class Paired:
    """Outcomes of two arms on the same questions.

    Attributes:
        questions: n, at least 1.
        losses: b, right in the baseline and wrong in the arm.
        gains: c, the other way round.

    Raises:
        ValueError: a count is negative, or there are more discordant questions than questions.
    """

    questions: int
    losses: int
    gains: int

    def __post_init__(self) -> None:
        """Check the counts."""
        counts = f"questions {self.questions}, losses {self.losses}, gains {self.gains}"
        if self.questions < 1 or min(self.losses, self.gains) < 0:
            msg = f"{counts}: expected at least one question, and no negative count"
            raise ValueError(msg)
        if self.losses + self.gains > self.questions:
            msg = f"{counts}: expected at most as many losses and gains as questions"
            raise ValueError(msg)

    @property
    def discordance(self) -> float:
        """(b + c) / n."""
        return (self.losses + self.gains) / self.questions

    @property
    def difference(self) -> float:
        """Accuracy of the arm minus that of the baseline, (c − b) / n."""
        return (self.gains - self.losses) / self.questions


def mcnemar(paired: Paired) -> float:
    """Return the exact one-sided p-value of "the arm is no worse"; 1 without discordant questions."""
    discordant = paired.losses + paired.gains
    if discordant == 0:
        return 1.0
    return float(binomtest(paired.losses, discordant, 0.5, alternative="greater").pvalue)


def score(losses: ArrayLike, gains: ArrayLike, questions: int, loss: float) -> Float64Array:
    """Return Tango's score of "the true loss is `loss`": large where the loss seen is smaller.

    (n·loss − (b − c)) / √(n (2q + loss (1 − loss))), where q is the likeliest p_c under p_b = p_c + loss.

    Args:
        losses: b, any shape.
        gains: c, of a shape that goes with it.
        questions: n.
        loss: in (−1, 1).

    Returns:
        float64, 0 where nothing is discordant and the loss is 0.
    """
    b, c = np.asarray(losses, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    # The likelihood's derivative in q is zero where 2n q² + linear q + constant is.
    linear = (2 * questions - b + c) * loss - (b + c)
    constant = -c * loss * (1 - loss)
    root = np.sqrt(np.maximum(linear**2 - 8 * questions * constant, 0))
    q = np.maximum((root - linear) / (4 * questions), max(0.0, -loss))
    variance = np.maximum(questions * (2 * q + loss * (1 - loss)), 0)
    distance = questions * loss - (b - c)
    spread = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / spread)


def fewest_gains(questions: int, loss: float, least: float) -> Int64Array:
    """Return, for every b, the fewest gains with which the score reaches `least`.

    Args:
        questions: n.
        loss: the loss that is tested.
        least: a score.

    Returns:
        int64 [n + 1], never falling with b; n + 1, more than any c, where no c will do.
    """
    b = np.arange(questions + 1)
    below, enough = np.full_like(b, -1), questions - b + 1
    while (enough - below > 1).any():
        middle = np.maximum((below + enough) // 2, 0)
        reached = score(b, middle, questions, loss) >= least - _TIE
        # Where the search has ended, middle is `below` and must not become `enough`.
        open_ = enough - below > 1
        enough = np.where(open_ & reached, middle, enough)
        below = np.where(open_ & ~reached, middle, below)
    return np.where(enough > questions - b, questions + 1, enough)


def nuisances(loss: float, questions: int) -> Float64Array:
    """Return rising values of p_c that p_b = p_c + loss allows: dense where few or nearly all are discordant."""
    low, high = max(0.0, -loss), (1 - loss) / 2
    few = np.geomspace(0.01 / questions, 1.0, _GEOMETRIC)
    all_ = (1 - np.cos(np.linspace(0, np.pi, _COSINE))) / 2
    return low + np.union1d(few, all_) * (high - low)


def chances(fewest: Int64Array, loss: float, q: Float64Array, *, at_least: bool = True) -> Float64Array:
    """Return the chance of c ≥ fewest[b] (or of c < fewest[b]) at a true loss, for each p_c.

    Args:
        fewest: int64 [n + 1], by b.
        loss: p_b − p_c.
        q: p_c, float64 [G].
        at_least: False for the complement.

    Returns:
        float64 [G].
    """
    groups = [q[first : first + _TOGETHER] for first in range(0, len(q), _TOGETHER)]
    return np.concatenate([_chances(fewest, loss, group, at_least=at_least) for group in groups])


def _chances(fewest: Int64Array, loss: float, q: Float64Array, *, at_least: bool) -> Float64Array:
    n = len(fewest) - 1
    p_b = np.clip(q + loss, 0, 1)
    half = int(np.ceil(_DEVIATIONS * np.sqrt(n * (p_b * (1 - p_b)).max()))) + _SLACK
    b = np.rint(n * p_b).astype(np.int64)[:, None] + np.arange(-half, half + 1)  # [G, 2 half + 1]
    inside = (b >= 0) & (b <= n)
    b = np.clip(b, 0, n)
    rest = np.divide(q, 1 - p_b, out=np.ones_like(q), where=p_b < 1)
    tail = (binom.sf if at_least else binom.cdf)(fewest[b] - 1, n - b, np.minimum(rest, 1)[:, None])
    return (binom.pmf(b, n, p_b[:, None]) * tail * inside).sum(axis=1)


def worst_chance(
    fewest: Int64Array, loss: float, *, at_least: bool = True, enough: float = float("inf")
) -> float:
    """Return the largest of `chances` over p_c; the rough grid's where that is above `enough` already."""
    questions = len(fewest) - 1
    q = nuisances(loss, questions)
    found = chances(fewest, loss, q, at_least=at_least)
    worst = float(found.max())
    if worst > enough:
        return worst
    for peak in np.argsort(found)[-_PEAKS:]:
        near = np.linspace(q[max(peak - 1, 0)], q[min(peak + 1, len(q) - 1)], _FINE)
        worst = max(worst, float(chances(fewest, loss, near, at_least=at_least).max()))
    return min(1.0, worst)


def p_loss_below(paired: Paired, margin: float) -> float:
    """Return the exact p-value of "the loss is `margin` or more"; small where it is surely less."""
    seen = float(score(paired.losses, paired.gains, paired.questions, margin))
    return worst_chance(fewest_gains(paired.questions, margin, seen), margin)


def p_loss_above(paired: Paired, margin: float) -> float:
    """Return the exact p-value of "the loss is `margin` or less"; small where it is surely more."""
    seen = float(score(paired.losses, paired.gains, paired.questions, margin))
    # Outcomes with a score up to the one seen: those below the first that is larger.
    more = fewest_gains(paired.questions, margin, seen + 2 * _TIE)
    return worst_chance(more, margin, at_least=False)


def largest_loss(paired: Paired, alpha: float = 0.05) -> float:
    """Return the upper limit of the loss with one-sided confidence 1 − alpha: a fraction, negative for a sure gain."""
    low, high = max(-paired.difference, -1 + 1e-9), 1 - 1e-9
    # 1. Start near Tango's limit, so that a step of the p-value far away does not matter.
    near = -tango_interval(paired, 1 - 2 * alpha)[0]
    wide = 0.5 / paired.questions
    while near + wide < high and p_loss_below(paired, near + wide) > alpha:
        wide *= 2
    high = min(near + wide, high)
    # 2. Halve.
    for _ in range(_HALVINGS):
        if high - low < _EXACT:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if p_loss_below(paired, middle) > alpha else (low, middle)
    return high


def tango_interval(paired: Paired, confidence: float = 0.95) -> tuple[float, float]:
    """Return Tango's two-sided interval of the difference arm − baseline, as fractions."""
    z = float(norm.isf((1 - confidence) / 2))
    n, b, c = paired.questions, paired.losses, paired.gains

    def solve(target: float) -> float:
        low, high = -1.0, 1.0  # the score grows with the loss
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if float(score(b, c, n, middle)) < target else (low, middle)
        return (low + high) / 2

    return -solve(z), -solve(-z)


def accuracy_interval(correct: int, questions: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Clopper and Pearson's exact interval of one arm's accuracy, as fractions."""
    found = binomtest(correct, questions).proportion_ci(confidence_level=confidence, method="exact")
    return float(found.low), float(found.high)
