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
        "statistics.py",
        True,
    ),
    (
        "gains count as losses",
        "statistics",
        "distance = questions * loss - (b - c)",
        "distance = questions * loss - (b + c)",
        "statistics.py",
        False,
    ),
    (
        "the likeliest chance of a gain has the wrong sign",
        "statistics",
        "constant = -c * loss * (1 - loss)",
        "constant = c * loss * (1 - loss)",
        "statistics.py",
        False,
    ),
    (
        "the worst chance is that of few gains only",
        "statistics",
        "worst = float(found.max())",
        "worst = float(found[0])",
        "statistics.py",
        False,
    ),
    (
        "finer values of the nuisance are left out",
        "statistics",
        "for peak in np.argsort(found)[-_PEAKS:]:",
        "for peak in ():",
        "statistics.py",
        False,
    ),
    (
        "the fewest gains are one too few",
        "statistics",
        "return np.where(enough > questions - b, questions + 1, enough)",
        "return np.where(enough > questions - b, questions + 1, enough - 1)",
        "statistics.py",
        False,
    ),
    (
        "the limit of the loss has half the confidence",
        "statistics",
        "low, high = (middle, high) if p_loss_below(paired, middle) > alpha else (low, middle)\n    return high",
        "low, high = (middle, high) if p_loss_below(paired, middle) > 2 * alpha else (low, middle)\n    return high",
        "statistics.py",
        False,
    ),
    (
        "the exact interval is one-sided",
        "statistics",
        'confidence_level=confidence, method="exact"',
        'confidence_level=confidence, method="wilson"',
        "statistics.py",
        False,
    ),
    (
        "a surely large loss is undecided",
        "verdict",
        '    elif p_loss_above(pairs.outcomes, margin / 100) <= alpha:\n        outcome = "fail"\n',
        "",
        "verdict.py",
        False,
    ),
    (
        "one failed criterion is outvoted",
        "verdict",
        'return "worse" if "fail" in outcomes else',
        'return "worse" if outcomes == {"fail"} else',
        "verdict.py",
        True,
    ),
    (
        "log-probabilities beyond their limit pass",
        "verdict",
        'outcome: Outcome = "pass" if value <= bound else "fail"',
        'outcome: Outcome = "pass"',
        "verdict.py",
        False,
    ),
)

MUTANTS = tuple(
    Mutant(what, f"{_S}{file}.py", before, after, _T + test, short)
    for what, file, before, after, test, short in _LIST
)
