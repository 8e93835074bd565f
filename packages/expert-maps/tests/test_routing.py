# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import placements

from expert_maps import ExpertMapsError, Placement, routing


@given(placements(), st.integers(1, 40))
def test_replicas_differ_by_at_most_one_token_a_period(placement: Placement, rows: int) -> None:
    for rank in range(placement.ep_size):
        table = placement.routing_table(0, rank, rows=rows)
        assert table.shape == (rows, placement.num_logical_experts)
        for expert in range(placement.num_logical_experts):
            taken = np.bincount(table[:, expert], minlength=placement.num_physical_experts)
            copies = placement.logical_to_physical[0, expert, : placement.replica_count[0, expert]]
            assert taken[copies].sum() == rows
            assert taken[copies].max() - taken[copies].min() <= 1


@given(placements())
def test_one_token_on_each_rank_is_spread_too(placement: Placement) -> None:
    first = np.array([placement.routing_table(0, rank)[0] for rank in range(placement.ep_size)])
    for expert in range(placement.num_logical_experts):
        taken = np.bincount(first[:, expert], minlength=placement.num_physical_experts)
        copies = placement.logical_to_physical[0, expert, : placement.replica_count[0, expert]]
        assert taken[copies].max() - taken[copies].min() <= 1


def test_row_zero_is_log2phy() -> None:
    placement = Placement([[0, 1, 0, 2, 0, 3]], 3)
    for rank in range(3):
        np.testing.assert_array_equal(placement.routing_table(0, rank)[0], placement.log2phy(0, rank))


def test_the_default_period_is_the_least_common_multiple_up_to_a_limit() -> None:
    assert routing.default_rows(np.array([1, 2, 3], dtype=np.int32)) == 6
    assert routing.default_rows(np.arange(1, 12, dtype=np.int32)) == routing.MAX_DEFAULT_ROWS


@pytest.mark.parametrize("rows", [0, -1, 1.5])
def test_a_wrong_period_is_refused(rows: int) -> None:
    with pytest.raises(ExpertMapsError, match="rows is"):
        Placement([[0, 1]], 2).routing_table(0, 0, rows=rows)
