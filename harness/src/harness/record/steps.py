# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a metric took a step from one run to the next, by a permutation test.

The runs are split in two where the mean ranks before and after differ most, for the number of runs on each side. How often
as large a difference comes about is counted over the same values in random order. So a history of mere noise, whatever its
distribution, shows a step in at most `ALPHA` of cases; a drift is no noise, and is found as a step. Both parts are then
looked at alone. Fewer than `LEAST` runs never show one: all orders of them are too few.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ALPHA, LEAST = 0.01, 10
# Fewer on one side are an outlier.
_SIDE = 3
_ORDERS = 1999


@dataclass(frozen=True)
class Step:
    """A change that lasted.

    Attributes:
        place: of the first run after it.
        before: median of the runs between the step before this one and it.
        after: median of the runs from it to the next one.
        p: chance of as large a difference without a step.
    """

    place: int
    before: float
    after: float
    p: float


def _splits(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far means before and after each place differ, [..., n − 2·_SIDE + 1]; for the last axis of n ranks."""
    count = ranks.shape[-1]
    before = np.cumsum(ranks, axis=-1)[..., _SIDE - 1 : count - _SIDE]
    sizes = np.arange(_SIDE, count - _SIDE + 1)
    # Sum of the first so many, less what it is on average, over its standard deviation but for a factor.
    expected = sizes * (count + 1) / 2
    return np.abs(before - expected) / np.sqrt(sizes * (count - sizes))


def _largest(ranks: NDArray[np.float64], axis: int = -1) -> Any:  # noqa: ANN401 - a number, or one for each order
    return _splits(np.moveaxis(ranks, axis, -1)).max(axis=-1)


def find_steps(values: Sequence[float], alpha: float = ALPHA) -> list[Step]:
    """Return the steps of a history, by place.

    Args:
        values: one a run, oldest first.
        alpha: how often a history of noise shows one, at most.
    """
    found = sorted(_places(np.array(values, dtype=np.float64), 0, alpha))
    edges = [0, *(place for place, _ in found), len(values)]
    medians = [float(np.median(values[begin:end])) for begin, end in pairwise(edges)] if found else []
    return [Step(place, medians[order], medians[order + 1], p) for order, (place, p) in enumerate(found)]


def _places(values: NDArray[np.float64], offset: int, alpha: float) -> list[tuple[int, float]]:
    if len(values) < LEAST or np.ptp(values) == 0:
        return []
    ranks = stats.rankdata(values)
    p = stats.permutation_test(
        (ranks,),
        _largest,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=_ORDERS,
        alternative="greater",
        random_state=np.random.default_rng(0),
    ).pvalue
    if p > alpha:
        return []
    place = int(_splits(ranks).argmax()) + _SIDE
    return [
        (offset + place, float(p)),
        *_places(values[:place], offset, alpha),
        *_places(values[place:], offset + place, alpha),
    ]
