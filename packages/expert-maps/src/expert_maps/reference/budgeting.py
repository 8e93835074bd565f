# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How a budget is best spent over layers, by trying every way. The twin of ``expert_maps.budgeting``."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from expert_maps.reference.layer import add_up

if TYPE_CHECKING:
    from collections.abc import Sequence


def spend(cost: Sequence[Sequence[float]], units: int) -> tuple[float, int]:
    """Return the least sum of costs within a budget, and the fewest units with which it is reached.

    Args:
        cost: [L][K], what each layer costs with 0 … K − 1 units.
        units: how many there are at most.
    """
    ways = product(*(range(len(of_layer)) for of_layer in cost))
    return min(
        (add_up(of_layer[more] for of_layer, more in zip(cost, way, strict=True)), sum(way))
        for way in ways
        if sum(way) <= units
    )
