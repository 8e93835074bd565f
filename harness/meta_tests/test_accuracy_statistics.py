# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The statistics of paired accuracy: exact, one-sided, and never wrong more often than they say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import binom, multinomial

from harness.accuracy import power
from harness.accuracy.power import Aim
from harness.accuracy.statistics import (
    Paired,
    accuracy_interval,
    fewest_gains,
    largest_loss,
    mcnemar,
    p_loss_above,
    p_loss_below,
    score,
    tango_interval,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ALPHA = 0.05


@st.composite
def pairs(draw: st.DrawFn, most: int = 300) -> Paired:
    questions = draw(st.integers(1, most))
    losses = draw(st.integers(0, questions))
    return Paired(questions, losses, draw(st.integers(0, questions - losses)))


def test_mcnemar_is_a_fair_coin_on_the_discordant() -> None:
    assert mcnemar(Paired(1000, 5, 0)) == pytest.approx(1 / 32)
    assert mcnemar(Paired(1000, 3, 1)) == pytest.approx(5 / 16)
    assert mcnemar(Paired(1000, 0, 0)) == 1.0


@given(pairs())
def test_a_gain_is_never_significant(seen: Paired) -> None:
    if seen.gains >= seen.losses:
        assert mcnemar(seen) >= 0.5


@given(pairs(60), st.floats(-0.5, 0.5))
def test_the_score_uses_the_likeliest_nuisance(seen: Paired, loss: float) -> None:
    n, b, c = seen.questions, seen.losses, seen.gains

    def unlikely(q: float) -> float:
        return -float(xlogy(b, max(q + loss, 0)) + xlogy(c, q) + xlogy(n - b - c, max(1 - 2 * q - loss, 0)))

    bounds = (max(0.0, -loss), (1 - loss) / 2)
    found = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = n * (2 * found + loss * (1 - loss))
    distance = n * loss - (b - c)
    expected = distance / math.sqrt(variance) if variance > 1e-6 else None
    if expected is not None:
        assert float(score(b, c, n, loss)) == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(
    ("questions", "loss", "least"), [(1, 0.1, 0.0), (40, 0.05, 1.6), (60, -0.1, 2.0), (60, 0.02, 9.0)]
)
def test_the_fewest_gains_are_those_of_a_plain_search(questions: int, loss: float, least: float) -> None:
    found = fewest_gains(questions, loss, least)
    for b in range(questions + 1):
        passing = [c for c in range(questions - b + 1) if float(score(b, c, questions, loss)) >= least - 1e-9]
        assert found[b] == min(passing, default=questions + 1)
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("questions", [5, 32, 400, 1319])
def test_no_discordant_question_bounds_the_loss_as_a_single_proportion(questions: int) -> None:
    expected = 1 - ALPHA ** (1 / questions)
    assert largest_loss(Paired(questions, 0, 0)) == pytest.approx(expected, abs=2e-6)
    if questions == 1319:
        assert 100 * expected == pytest.approx(0.2269, abs=1e-4)


def naive_p(seen: Paired, margin: float, is_as_good: Callable[[float, float], bool]) -> float:
    """Sum a trinomial over the outcomes that are as good as the one seen, at every p_c of a grid."""
    n = seen.questions
    reference = float(score(seen.losses, seen.gains, n, margin))
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    good = [pair for pair in outcomes if is_as_good(float(score(*pair, n, margin)), reference)]
    table = np.array([(b, c, n - b - c) for b, c in good])
    worst = 0.0
    for q in np.linspace(max(0.0, -margin), (1 - margin) / 2, 60):
        worst = max(worst, float(multinomial.pmf(table, n, [q + margin, q, 1 - 2 * q - margin]).sum()))
    return worst


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (0, 3), (2, 1), (5, 0), (8, 9)])
@pytest.mark.parametrize("margin", [0.02, 0.15])
def test_the_exact_p_value_is_the_largest_of_a_plain_sum(losses: int, gains: int, margin: float) -> None:
    seen = Paired(30, losses, gains)
    below = naive_p(seen, margin, lambda one, reference: one >= reference - 1e-9)
    above = naive_p(seen, margin, lambda one, reference: one <= reference + 1e-9)
    # The grids differ: neither may find clearly more than the other.
    assert p_loss_below(seen, margin) == pytest.approx(below, abs=2e-3)
    assert p_loss_above(seen, margin) == pytest.approx(above, abs=2e-3)


@settings(deadline=None, max_examples=60)
@given(pairs(200), st.floats(0.005, 0.2))
def test_limit_and_test_say_the_same(seen: Paired, margin: float) -> None:
    limit = largest_loss(seen, ALPHA)
    if limit < margin - 1e-6:
        assert p_loss_below(seen, margin) <= ALPHA + 1e-3
    if limit > margin + 1e-6 and p_loss_below(seen, margin) <= ALPHA:
        # The p-value is not strictly monotone; the limit is the larger of its crossings.
        assert limit - margin < 1.5 / seen.questions
    assert -seen.difference <= limit + 1e-6


@settings(deadline=None, max_examples=60)
@given(pairs(200))
def test_more_gains_never_make_the_loss_likelier(seen: Paired) -> None:
    if seen.losses + seen.gains < seen.questions:
        better = Paired(seen.questions, seen.losses, seen.gains + 1)
        assert p_loss_below(better, 0.02) <= p_loss_below(seen, 0.02) + 1e-9
        assert p_loss_above(better, 0.02) >= p_loss_above(seen, 0.02) - 1e-9


@given(pairs())
def test_tango_is_symmetric_and_holds_the_estimate(seen: Paired) -> None:
    low, high = tango_interval(seen)
    assert low - 1e-9 <= seen.difference <= high + 1e-9
    other = tango_interval(Paired(seen.questions, seen.gains, seen.losses))
    assert other == pytest.approx((-high, -low), abs=1e-9)


def test_tango_without_discordant_questions() -> None:
    # Without discordant questions the limits are ±z² / (n + z²), by solving the score for b = c = 0.
    z2 = 1.959964**2
    assert tango_interval(Paired(50, 0, 0)) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-5)


def test_one_arm_of_32_right_answers() -> None:
    low, high = accuracy_interval(32, 32)
    assert 100 * low == pytest.approx(89.1, abs=0.05)
    assert high == 1


@pytest.mark.parametrize("counts", [(0, 0, 0), (10, 11, 0), (10, 6, 5), (10, -1, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Paired(*counts)


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("questions", [30, 100, 301, 777, 1319])
def test_a_true_loss_of_the_margin_rarely_passes(questions: int, margin: float) -> None:
    """Enumerate every outcome that passes at every discordance of a grid that the test does not use."""
    passing = power.region(questions, margin, ALPHA)
    for discordance in np.unique(
        np.concatenate([[margin], np.linspace(margin, 1, 41), margin + np.geomspace(1e-4, 0.2, 25)])
    ):
        if discordance > 1:
            continue
        p_b, p_c = (discordance + margin) / 2, (discordance - margin) / 2
        b = np.arange(questions + 1)
        gains = binom.sf(passing - 1, questions - b, p_c / (1 - p_b) if p_b < 1 else 0.0)
        assert float((binom.pmf(b, questions, p_b) * gains).sum()) <= ALPHA + 1e-4, discordance


def test_the_enumeration_finds_a_test_that_passes_too_often() -> None:
    # Tango's score with the normal quantile, which is what the exact test corrects.
    passing = fewest_gains(1319, 0.02, 1.6448536)
    b = np.arange(1320)
    assert float((binom.pmf(b, 1319, 0.02) * (passing == 0)).sum()) > 0.054


@pytest.mark.parametrize(("questions", "margin", "discordance"), [(40, 0.05, 0.1), (60, 0.08, 0.08)])
def test_outcome_by_outcome_both_tests_pass_a_true_loss_rarely(
    questions: int, margin: float, discordance: float
) -> None:
    p_b, p_c = (discordance + margin) / 2, (discordance - margin) / 2
    total = 0.0
    for b in range(questions + 1):
        for c in range(questions + 1 - b):
            chance = float(multinomial.pmf([b, c, questions - b - c], questions, [p_b, p_c, 1 - p_b - p_c]))
            if chance < 1e-9:
                continue
            seen = Paired(questions, b, c)
            passes = p_loss_below(seen, margin) <= ALPHA
            assert passes == (c >= power.region(questions, margin, ALPHA)[b]) or p_loss_below(
                seen, margin
            ) == pytest.approx(ALPHA, abs=0.01)
            total += chance * (passes and mcnemar(seen) > ALPHA)
    assert total <= ALPHA


# Questions needed by the normal formula, as computed elsewhere.
ELSEWHERE = [
    (0.01, 0.01, 625),
    (0.02, 0.01, 1237),
    (0.03, 0.01, 1855),
    (0.05, 0.01, 3092),
    (0.01, 0.02, 157),
    (0.02, 0.02, 310),
    (0.03, 0.02, 464),
    (0.05, 0.02, 773),
]


@pytest.mark.parametrize(("discordance", "margin", "elsewhere"), ELSEWHERE)
def test_sizes_are_those_that_others_compute(discordance: float, margin: float, elsewhere: int) -> None:
    normal, found = power.normal_size(discordance, margin, Aim()), power.size(discordance, margin)
    assert normal == pytest.approx(elsewhere, rel=0.02)
    # The exact test hardly needs fewer than the formula says, and is not far from it where much is discordant.
    assert 0.95 * normal <= found <= (2 if discordance * found < 10 else 1.35) * elsewhere
    assert power.chance_no_worse(found, margin, discordance, ALPHA) >= 0.8
    # An exact test's power is a saw: it can be reached, and lost again, a little before.
    assert power.chance_no_worse(int(0.75 * found), margin, discordance, ALPHA) < 0.8


def test_chances_are_those_of_simulation() -> None:
    draw = np.random.default_rng(5)
    questions, discordance, margin = 400, 0.03, 0.02
    outcomes = draw.multinomial(questions, [discordance / 2, discordance / 2, 1 - discordance], size=20_000)
    passing = power.region(questions, margin, ALPHA)
    found = (outcomes[:, 1] >= passing[outcomes[:, 0]]).mean()
    assert power.chance_no_worse(questions, margin, discordance, ALPHA) == pytest.approx(found, abs=0.015)


@pytest.mark.parametrize(
    ("questions", "margin", "discordance"), [(400, 0.02, 0.03), (300, 0.12, 0.9), (700, 0.09, 0.7)]
)
def test_the_chance_is_that_of_a_plain_sum(questions: int, margin: float, discordance: float) -> None:
    """Where much is discordant too: there the outcomes of which no number of gains passes are within reach."""
    fewest = power.region(questions, margin, ALPHA)
    passing = np.array(
        [
            (b, c, questions - b - c)
            for b in range(questions + 1)
            for c in range(int(fewest[b]), questions + 1 - b)
        ]
    )
    expected = multinomial.pmf(passing, questions, [discordance / 2, discordance / 2, 1 - discordance]).sum()
    assert 0.3 < expected < 0.99
    assert power.chance_no_worse(questions, margin, discordance, ALPHA) == pytest.approx(expected, abs=1e-8)


def test_the_size_where_most_is_discordant_is_that_of_the_formula() -> None:
    assert power.size(0.7, 0.02) == pytest.approx(power.normal_size(0.7, 0.02, Aim()), rel=0.02)


def test_questions_that_would_decide() -> None:
    # 0.99^299 is the first below 5 %.
    assert power.more_questions(Paired(32, 0, 0), 0.01) == 299 - 32
    few, many = (power.more_questions(Paired(1319, b, 15), 0.01) for b in (18, 24))
    assert few is not None
    assert many is not None
    assert 0 < few < many
    assert power.more_questions(Paired(10, 9, 0), 0.0001) is None


@pytest.mark.parametrize(
    ("discordance", "margin", "aim"),
    [
        (0, 0.01, Aim()),
        (0.01, 1, Aim()),
        (0.01, 0.01, Aim(alpha=0)),
        (0.01, 0.01, Aim(power=1)),
        (0.5, 1e-4, Aim()),
    ],
)
def test_impossible_aims_are_refused(discordance: float, margin: float, aim: Aim) -> None:
    with pytest.raises(ValueError, match=r"expected a share|more than 1,000,000"):
        power.size(discordance, margin, aim)
