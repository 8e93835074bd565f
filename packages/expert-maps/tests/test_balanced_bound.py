# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The bound where rounding tempts it, and searches that must end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_maps import generate_placement, plan, rescale, step_peaks


@pytest.mark.parametrize(
    ("load", "slots", "ranks"),
    [
        ([0.4, 0.6, 0.2], 10, 5),
        ([0.019, 0.01, 0.013], 6, 6),
        ([0.2, 0.0, 0.7], 7, 7),
    ],
)
def test_loads_that_rounding_puts_above_a_size_do_not_raise_the_bound(
    load: list[float], slots: int, ranks: int
) -> None:
    result = plan([load], num_physical_experts=slots, ep_size=ranks)
    assert result.lower_bound[0] <= result.max_rank_load[0] * (1 + 1e-9)
    assert result.lower_bound[0] == pytest.approx(result.max_rank_load[0], rel=1e-6)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12),
    st.sampled_from([3, 7, 10, 100, 1000]),
    st.integers(1, 9),
    st.integers(0, 8),
    st.sampled_from([None, 0.01, 1e-320]),
)
def test_the_bound_of_averaged_loads_is_below_the_plan(
    counts: list[int], steps: int, ranks: int, more: int, tolerance: float | None
) -> None:
    experts = len(counts)
    slots = ranks * min(experts, -(-experts // ranks) + more)
    load = np.array([counts]) / steps
    result = plan(load, num_physical_experts=slots, ep_size=ranks, tolerance=tolerance)
    assert result.lower_bound[0] <= result.max_rank_load[0] * (1 + 1e-9)
    assert result.lower_bound[0] >= load.sum() / ranks * (1 - 1e-9)


def test_windows_with_all_tokens_on_one_expert_leave_the_others_planned() -> None:
    steps = np.random.default_rng(0).lognormal(0, 0.85, size=(8, 1, 64))
    steps[-1] = 0
    steps[-1, 0, 5] = steps[0].sum()
    found, by_sum = (
        plan(load, num_physical_experts=96, ep_size=48).placement for load in (steps, steps.sum(axis=0))
    )
    assert step_peaks(found, steps).sum() < step_peaks(by_sum, steps).sum()


def test_an_uneven_placement_keeps_its_slots_when_no_rank_changes() -> None:
    load = np.random.default_rng(0).lognormal(size=(2, 32))
    before = plan(load, num_physical_experts=42, ep_size=4, allow_uneven=True).placement
    result = rescale(before, load, allow_uneven=True)
    assert result.placement == before
    assert result.moves is not None
    assert not result.moves.changed.any()
    even = generate_placement("linear", num_experts=32, ep_size=4, num_layers=2)
    assert rescale(even, load, ep_size=5, num_physical_experts=40).placement.num_physical_experts == 40
