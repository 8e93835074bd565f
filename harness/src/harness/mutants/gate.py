# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of the accuracy gate: its statistics and its verdict."""

from __future__ import annotations

from harness.mutants.mutant import Mutant

_S = "harness/src/harness/accuracy/"
_T = "harness/meta_tests/test_accuracy_"

# what, Python file, text before, text after, test, whether in the short list
_LIST: tuple[tuple[str, str, str, str, str, bool], ...] = (
    (
        "McNemar's test asks for a gain",
        "statistics",
        'alternative="greater"',
        'alternative="less"',
        "statistics.py::test_mcnemar_is_a_fair_coin_on_the_discordant",
        True,
    ),
    (
        "gains count as losses",
        "statistics",
        "distance = questions * loss - (b - c)",
        "distance = questions * loss - (b + c)",
        "statistics.py::test_the_score_uses_the_likeliest_nuisance",
        False,
    ),
    (
        "the likeliest chance of a gain has the wrong sign",
        "statistics",
        "constant = -c * loss * (1 - loss)",
        "constant = c * loss * (1 - loss)",
        "statistics.py::test_the_score_uses_the_likeliest_nuisance",
        False,
    ),
    (
        "the worst chance is that of the last value tried",
        "statistics",
        "worst = max(worst, float(chances(fewest, loss, near, at_least=at_least).max()))",
        "worst = float(chances(fewest, loss, near[-1:], at_least=at_least).max())",
        "statistics.py::test_the_exact_p_value_is_the_largest_of_a_plain_sum",
        False,
    ),
    (
        "finer values of the nuisance are left out",
        "statistics",
        "for peak in np.argsort(found)[-_PEAKS:]:",
        "for peak in ():",
        "worst_chance.py::test_the_worst_chance_is_that_of_a_fine_grid",
        False,
    ),
    (
        "the fewest gains are one too few",
        "statistics",
        "return np.where(enough > questions - b, questions + 1, enough)",
        "return np.where(enough > questions - b, questions + 1, enough - 1)",
        "statistics.py::test_the_fewest_gains_are_those_of_a_plain_search",
        False,
    ),
    (
        "the limit of the loss has half the confidence",
        "statistics",
        "low, high = (middle, high) if p_loss_below(paired, middle) > alpha else (low, middle)\n    return high",
        "low, high = (middle, high) if p_loss_below(paired, middle) > 2 * alpha else (low, middle)\n    return high",
        "statistics.py::test_no_discordant_question_bounds_the_loss_as_a_single_proportion",
        False,
    ),
    (
        "the exact interval is one-sided",
        "statistics",
        'confidence_level=confidence, method="exact"',
        'confidence_level=confidence, method="wilson"',
        "statistics.py::test_one_arm_of_32_right_answers",
        False,
    ),
    (
        "a surely large loss is undecided",
        "criteria",
        '    elif p_loss_above(pairs.outcomes, margin / 100) <= alpha:\n        outcome = "fail"\n',
        "",
        "verdict.py::test_a_loss_that_surely_exceeds_the_margin_fails_by_name",
        False,
    ),
    (
        "one failed criterion is outvoted",
        "verdict",
        'if "fail" in outcomes:',
        'if outcomes == {"fail"}:',
        "verdict.py::test_a_loss_that_surely_exceeds_the_margin_fails_by_name",
        True,
    ),
    (
        "log-probabilities beyond their limit pass",
        "criteria",
        'outcome: Outcome = "pass" if value <= bound else "fail"',
        'outcome: Outcome = "pass"',
        "verdict.py::test_limits_of_log_probabilities_by_dtype",
        False,
    ),
)

MUTANTS = tuple(
    Mutant(what, f"{_S}{file}.py", before, after, _T + test, short)
    for what, file, before, after, test, short in _LIST
)
