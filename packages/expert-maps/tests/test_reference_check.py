# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiled planner refuses or doubts of its own answer, given wrong answers: it never finds one by itself."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from expert_maps.policies import load_planner
from expert_maps.policies.balanced import _BROKEN, _PLANNED, _Problem

LOADS = np.array([[3.0, 1.0], [2.0, 2.0]])


def check(slots: list[int], bounds: list[float]) -> tuple[int, list[float]]:
    """Return what is said of two layers of three experts in two slots on each of two ranks, and their bounds then."""
    slot, bound = np.array(slots, dtype=np.int32), np.array(bounds)
    capacity = np.array([2, 2], dtype=np.int32)
    problem = _Problem(layers=2, experts=3, ranks=2, nodes=1, groups=1, windows=1, slots=4)
    for name, array in (("capacity", capacity), ("slot", slot), ("bound", bound), ("rank_load", LOADS)):
        setattr(problem, name, array.ctypes.data)
    return load_planner().expert_maps_part_check_answer(ctypes.byref(problem)), bound.tolist()


def test_a_placement_passes_and_bounds_below_it_stay() -> None:
    assert check([0, 1, 2, 0, 1, 2, 0, 1], [2.5, 2.0]) == (_PLANNED, [2.5, 2.0])


def test_a_bound_above_the_plan_is_doubted() -> None:
    assert check([0, 1, 2, 0, 1, 2, 0, 1], [3.1, 2.0]) == (_PLANNED, [2.0, 2.0])
    assert check([0, 1, 2, 0, 1, 2, 0, 1], [3.0, 2.5]) == (_PLANNED, [3.0, 2.0])


@pytest.mark.parametrize(
    "slots",
    [
        [0, 1, 2, 0, 1, 2, 0, 0],  # twice on a rank
        [0, 1, 1, 0, 1, 2, 0, 1],  # expert 2 is missing in the first layer
        [0, 1, 2, 0, 1, 0, 0, 1],  # and in the second
        [0, 1, 2, 3, 1, 2, 0, 1],  # there is no expert 3
        [0, 1, 2, -1, 1, 2, 0, 1],
    ],
)
def test_what_is_no_placement_is_refused(slots: list[int]) -> None:
    assert check(slots, [1.0, 1.0])[0] == _BROKEN
