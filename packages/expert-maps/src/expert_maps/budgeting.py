# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How a budget of slots is best spent over layers: dynamic programming over what each layer costs with so many slots.

The twin, by trying everything, is ``expert_maps.reference.budgeting``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]
    Int64Array = NDArray[np.int64]


def cheapest(cost: Float64Array, units: int) -> Float64Array:
    """Return the least sum over layers for every budget.

    Args:
        cost: float64 [L, K], what a layer costs with 0 … K − 1 units more than it must have; infinite where it cannot.
        units: U, the largest budget.

    Returns:
        float64 [U + 1]: with at most so many units.
    """
    return _tables(cost, units)[-1]


def spend(cost: Float64Array, units: int) -> Int64Array:
    """Return the units of each layer, int64 [L], whose sum is within a budget and whose costs add up to least.

    Of equal costs the one with fewer units, in the last layers first. Arguments as `cheapest`.
    """
    tables = _tables(cost, units)
    chosen = np.zeros(len(cost), dtype=np.int64)
    # Not more than is needed: the smallest budget with the least sum.
    left = int(np.argmax(tables[-1] <= tables[-1][units]))
    for layer in reversed(range(len(cost))):
        most = min(left + 1, cost.shape[1])
        chosen[layer] = int(np.argmin(tables[layer][left - np.arange(most)] + cost[layer, :most]))
        left -= int(chosen[layer])
    return chosen


def _tables(cost: Float64Array, units: int) -> Float64Array:
    """Return the least sum of the first layers for every budget: float64 [L + 1, U + 1]."""
    tables = np.zeros((len(cost) + 1, units + 1))
    for layer, of_layer in enumerate(cost):
        best = np.full(units + 1, np.inf)
        for more, value in enumerate(of_layer[: units + 1]):
            np.minimum(best[more:], tables[layer, : units + 1 - more] + value, out=best[more:])
        tables[layer + 1] = best
    return tables
