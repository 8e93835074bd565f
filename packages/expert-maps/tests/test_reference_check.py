# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiled planner refuses or doubts of its own answer, given wrong answers: it never finds one by itself."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from expert_maps import plan
from expert_maps.policies import load_planner
from expert_maps.policies.balanced import (
    _BROKEN,
    _INTERRUPTED,
    _OTHER_INTERFACE,
    _PLANNED,
    _WRONG_BOUND,
    _Problem,
)

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


def test_a_bound_above_the_plan_is_an_error_and_not_repaired() -> None:
    slots = [0, 1, 2, 0, 1, 2, 0, 1]
    assert check(slots, [3.1, 2.0]) == (_WRONG_BOUND, [3.1, 2.0])
    assert check(slots, [3.0, 2.5]) == (_WRONG_BOUND, [3.0, 2.5])
    assert check(slots, [3.0, 2.0]) == (_PLANNED, [3.0, 2.0])


def test_a_wrong_bound_is_named_with_its_layer_and_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """A planner whose second layer has a forged bound."""

        def expert_maps_plan(self, reference: Any) -> int:  # noqa: ANN401 - what `byref` returns
            problem = reference._obj
            status = int(load_planner().expert_maps_plan(reference))
            (ctypes.c_double * problem.layers).from_address(problem.bound)[1] *= 1.5
            return status or _WRONG_BOUND

    monkeypatch.setattr("expert_maps.policies.balanced.load_library", Wrong)
    load = np.array([[4.0, 3.0, 2.0, 1.0]] * 3)
    with pytest.raises(
        AssertionError, match=r"lower bound of layer 1 of these is 0\.9\d+ .+ carries 0\.6\d+"
    ):
        plan(load, ep_size=2, num_physical_experts=4)


def test_a_planner_that_is_cancelled_says_so() -> None:
    load, slot, bound = np.ones((1, 4)), np.full(4, -1, dtype=np.int32), np.zeros(1)
    capacity, rank_load, cancelled = np.array([2, 2], dtype=np.int32), np.zeros(2), ctypes.c_int32(1)
    problem = _Problem(
        layers=1, experts=4, ranks=2, nodes=1, groups=1, windows=1, slots=4, max_moves=-1, tolerance=1e-3
    )
    arrays: dict[str, Any] = {
        "capacity": capacity,
        "load": load,
        "slot": slot,
        "bound": bound,
        "rank_load": rank_load,
    }
    for name, array in arrays.items():
        setattr(problem, name, array.ctypes.data)
    problem.cancelled = ctypes.addressof(cancelled)
    assert load_planner().expert_maps_plan(ctypes.byref(problem)) == _INTERRUPTED
    cancelled.value = 0
    assert load_planner().expert_maps_plan(ctypes.byref(problem)) == _PLANNED
    assert sorted(slot) == [0, 1, 2, 3]


def test_an_interrupt_cancels_what_is_being_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        """A planner that plans until it is cancelled."""

        def expert_maps_plan(self, reference: Any) -> int:  # noqa: ANN401 - what `byref` returns
            cancelled = ctypes.c_int32.from_address(reference._obj.cancelled)
            os.kill(os.getpid(), signal.SIGINT)
            while not cancelled.value:
                time.sleep(0.001)
            ended.append(True)
            return _INTERRUPTED

    ended: list[bool] = []
    monkeypatch.setattr("expert_maps.policies.balanced.load_library", Endless)
    # A background job of a shell ignores Ctrl-C, and so do these tests in one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            plan(np.ones((64, 256)), ep_size=288, num_physical_experts=576)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [True]


@pytest.mark.parametrize("name", ["size", "version"])
def test_another_interface_is_refused_before_anything_is_read(name: str) -> None:
    problem = _Problem(layers=1)
    setattr(problem, name, getattr(problem, name) + 1)
    assert load_planner().expert_maps_plan(ctypes.byref(problem)) == _OTHER_INTERFACE


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
