# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import placements

from expert_maps import (
    ExpertMapsError,
    LoadError,
    Placement,
    balancedness,
    moves,
    over_steps,
    overall_balancedness,
    peak_to_mean,
    rank_load,
    step_peaks,
)


@given(placements(), st.integers(0, 2**32 - 1))
def test_rank_load_equals_a_plain_loop_and_loses_nothing(placement: Placement, seed: int) -> None:
    shape = (placement.num_layers, placement.num_logical_experts)
    load = np.random.default_rng(seed).integers(0, 1000, size=shape)
    found = rank_load(placement, load)
    for layer in range(placement.num_layers):
        for rank in range(placement.ep_size):
            experts = placement.local_experts(layer, rank)
            wanted = sum(load[layer, e] / placement.replica_count[layer, e] for e in experts)
            assert found[layer, rank] == pytest.approx(wanted)
    np.testing.assert_allclose(found.sum(axis=1), load.sum(axis=1))


def test_uneven_and_empty_ranks_are_summed_too() -> None:
    placement = Placement([[0, 1, 2]], 3, slots_per_rank=[2, 0, 1], allow_uneven=True)
    assert rank_load(placement, [[1, 2, 4]]).tolist() == [[3, 0, 4]]
    assert balancedness(placement, [[1, 2, 4]]).tolist() == [7 / 3 / 4]


def test_balancedness_is_per_layer_and_overall_as_vllm_logs_it() -> None:
    placement = Placement([[0, 1], [0, 1], [0, 1]], 2)
    load = [[3, 1], [10, 10], [0, 0]]
    assert balancedness(placement, load).tolist() == [2 / 3, 1, 1]
    assert peak_to_mean(placement, load).tolist() == [1.5, 1, 1]
    # The ratio of sums, not the mean of ratios.
    assert overall_balancedness(placement, load) == pytest.approx(12 / 13)
    assert overall_balancedness(placement, np.zeros((3, 2))) == 1


def test_a_load_of_other_counts_is_refused() -> None:
    with pytest.raises(LoadError, match="load has 1 layer and 3 experts; expected 1 and 2"):
        rank_load(Placement([[0, 1]], 2), [[1, 2, 3]])


def test_over_steps_waits_for_the_hottest_rank_of_each_step() -> None:
    placement = Placement([[0, 1], [0, 1]], 2)
    load = [[[3, 1], [2, 2]], [[0, 4], [1, 1]]]
    assert step_peaks(placement, load).tolist() == [[3, 2], [4, 1]]
    assert over_steps(placement, load) == (4 + 4 + 4 + 2) / 2 / (3 + 2 + 4 + 1)
    assert overall_balancedness(placement, load) == 7 / (5 + 3)
    assert over_steps(placement, load[0]) == overall_balancedness(placement, load[0])
    assert over_steps(placement, np.zeros((3, 2, 2))) == 1
    with pytest.raises(LoadError, match="load has 1 layer and 2 experts; expected 2 and 2"):
        step_peaks(placement, [[1, 2]])


def test_moves_tell_fetched_from_local() -> None:
    before = Placement([[0, 1, 2, 3]], 2)
    after = Placement([[1, 2, 0, 3]], 2)
    moved = moves(before, after)
    assert moved.changed.tolist() == [[True, True, True, False]]
    # Expert 1 was on rank 0 already.
    assert moved.fetched.tolist() == [[False, True, True, False]]
    assert moved.bytes(10) == 20
    assert (moved.num_changed, moved.num_fetched) == (3, 2)
    assert repr(moved) == "Moves(changed=3, fetched=2, slots=4)"
    assert moved.summary() == "3 of 4 slots change (75.0%); 2 are fetched from another rank"
    assert not moves(before, before).changed.any()


def test_moves_between_different_counts_are_refused() -> None:
    placement = Placement([[0, 1, 2, 3]], 2)
    for other in (
        Placement([[0, 1, 2, 3]] * 2, 2),
        Placement([[0, 1, 2, 3]], 4),
        Placement([[0, 1, 2, 3, 4, 5]], 2),
        Placement([[0, 1, 2, 3, 0, 1]], 2),
        Placement([[0, 1, 2, 3]], 2, slots_per_rank=[1, 3], allow_uneven=True),
    ):
        with pytest.raises(ExpertMapsError, match="differs"):
            moves(placement, other)
