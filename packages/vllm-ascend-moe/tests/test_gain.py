# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_maps import Placement, plan, rank_load
from vllm_ascend_moe.core.gain import MoveRule, tokens_per_slot

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two ranks of two slots. The first layer's rank 0 has both hot experts, the second's is balanced, the third's nearly.
BEFORE = Placement(np.tile([0, 1, 2, 3], (3, 1)), 2)
AFTER = Placement(np.array([[0, 2, 1, 3], [0, 2, 1, 3], [0, 2, 1, 3]]), 2)
LOAD = np.array([[100, 100, 10, 10], [50, 50, 50, 50], [60, 50, 50, 40]])
# The hottest rank's tokens: 200, 100, 110 before and 110, 100, 110 after.


def moved(rule: MoveRule, load: NDArray[np.int64] = LOAD) -> list[int]:
    found = rule.select(BEFORE, AFTER, load)
    rows = found.physical_to_logical
    for layer in range(3):
        wanted = AFTER if found.layers[layer] else BEFORE
        assert rows[layer].tolist() == wanted.physical_to_logical[layer].tolist()
    assert (found.reason is None) == found.layers.any()
    return [int(layer) for layer in np.flatnonzero(found.layers)]


@pytest.mark.parametrize(
    ("rule", "layers"),
    [
        # By the estimate a layer moves where it saves more than moving costs: each rank receives one slot.
        (MoveRule(), [0]),
        (MoveRule(slot_tokens=89), [0]),
        (MoveRule(slot_tokens=90), []),
        (MoveRule(slot_tokens=90, windows=1.5), [0]),
        (MoveRule(slot_tokens=135, windows=1.5), []),
        # By a limit all layers of a plan move, as it was made, or none: 90 of 410 tokens.
        (MoveRule(min_gain=0.0), [0, 1, 2]),
        (MoveRule(min_gain=90 / 410, slot_tokens=1e9), [0, 1, 2]),
        (MoveRule(min_gain=0.22), []),
        # Those that save most.
        (MoveRule(min_gain=0.0, max_layers=1), [0]),
        (MoveRule(min_gain=0.0, max_layers=2), [0, 1]),
        (MoveRule(min_gain=0.2, max_layers=1), [0]),
        (MoveRule(max_layers=5), [0]),
    ],
)
def test_layers_that_pay_are_moved(rule: MoveRule, layers: list[int]) -> None:
    assert moved(rule) == layers


def test_the_reason_says_what_was_found_and_the_limit() -> None:
    found = MoveRule(min_gain=0.3).select(BEFORE, AFTER, LOAD).reason
    assert found == "it would save the hottest ranks 21.95% of their tokens; min_gain is 30.00%"
    found = MoveRule(slot_tokens=500, windows=2).select(BEFORE, AFTER, LOAD).reason
    assert found == (
        "until the next rearrangement it would save the hottest ranks 180 tokens, and cost as long as 1500 take "
        "(min_gain sets a limit in its place)"
    )


def test_the_present_placement_is_no_reason() -> None:
    for rule in (MoveRule(), MoveRule(min_gain=1.0), MoveRule(max_layers=1)):
        found = rule.select(BEFORE, BEFORE, LOAD)
        assert found.reason is None
        assert not found.layers.any()
        assert np.array_equal(found.physical_to_logical, BEFORE.physical_to_logical)


def test_without_load_nothing_is_saved() -> None:
    assert moved(MoveRule(), np.zeros_like(LOAD)) == []
    assert moved(MoveRule(min_gain=0.01), np.zeros_like(LOAD)) == []
    assert moved(MoveRule(min_gain=0.0), np.zeros_like(LOAD)) == [0, 1, 2]


def test_what_stays_on_its_rank_costs_nothing() -> None:
    within = Placement(np.tile([1, 0, 3, 2], (3, 1)), 2)
    assert not MoveRule().select(BEFORE, within, LOAD).layers.any()
    mixed = Placement(np.array([[0, 2, 1, 3], [1, 0, 2, 3], [0, 1, 2, 3]]), 2)
    assert MoveRule(slot_tokens=89.9).select(BEFORE, mixed, LOAD).layers.tolist() == [True, False, False]


def test_an_expert_that_is_twice_on_a_rank_may_be_there_before() -> None:
    twice = Placement(np.tile([0, 0, 1, 2, 3, 1], (3, 1)), 2, num_logical_experts=4, allow_duplicates=True)
    after = plan(LOAD, num_physical_experts=6, ep_size=2).placement
    found = MoveRule(min_gain=0.0).select(twice, after, LOAD)
    assert np.array_equal(found.physical_to_logical, after.physical_to_logical)


@given(st.integers(0, 2**32 - 1), st.floats(0, 50), st.integers(1, 6))
def test_nothing_gets_worse_by_the_estimate(seed: int, slot_tokens: float, max_layers: int) -> None:
    rng = np.random.default_rng(seed)
    first, now = (rng.lognormal(sigma=1.5, size=(6, 8)) * 20 for _ in range(2))
    before = plan(first, num_physical_experts=12, ep_size=4).placement
    after = plan(now, num_physical_experts=12, ep_size=4).placement
    found = MoveRule(None, max_layers, slot_tokens).select(before, after, now)
    chosen = Placement(found.physical_to_logical, 4)
    peaks = [rank_load(placement, now).max(axis=1) for placement in (before, chosen)]
    assert (peaks[1] <= peaks[0]).all()
    assert found.layers.sum() <= max_layers
    assert (peaks[1] < peaks[0])[found.layers].all()


def test_a_slots_price_is_its_bytes_against_its_operations() -> None:
    # Twice the bytes for the same numbers cost twice; the size of an expert does not count.
    for device in ("cpu", "cuda", "npu"):
        small, large, wide = (tokens_per_slot(device, *size) for size in ((2e6, 1e6), (2e8, 1e8), (4e6, 1e6)))
        assert small == pytest.approx(large)
        assert wide == pytest.approx(2 * small)
    # 2 MB at 25 GB/s take 80 µs, in which 300 TFLOP/s make 24 GFLOP: 12000 tokens of 2 MFLOP.
    assert tokens_per_slot("npu", 2e6, 1e6) == pytest.approx(12000)
