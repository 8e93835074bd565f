# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The nuisance of the exact test is searched finely enough: beside a grid of 3,000 values."""

from __future__ import annotations

import numpy as np
import pytest

from harness.accuracy.statistics import chances, fewest_gains, score, worst_chance


@pytest.mark.parametrize(
    ("questions", "losses", "gains", "margin"),
    [(30, 0, 3, 0.05), (15, 1, 6, 0.05), (12, 3, 1, 0.3), (25, 0, 0, 0.2)],
)
def test_the_worst_chance_is_that_of_a_fine_grid(
    questions: int, losses: int, gains: int, margin: float
) -> None:
    fewest = fewest_gains(questions, margin, float(score(losses, gains, questions, margin)))
    grid = chances(fewest, margin, np.linspace(0, (1 - margin) / 2, 3000))
    assert worst_chance(fewest, margin) == pytest.approx(grid.max(), abs=1e-6)
