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


# weighted


@st.composite
def weights_of(draw: st.DrawFn, placement: Placement) -> np.ndarray:
    """Draw shares for the replicas of layer 0, [E, X]."""
    exists = placement.logical_to_physical[0] >= 0
    parts = st.one_of(st.integers(0, 5), st.floats(0, 1))
    drawn = np.array([[draw(parts) if there else 0 for there in row] for row in exists], dtype=np.float64)
    drawn[:, 0] += drawn.sum(axis=1) == 0
    return drawn / drawn.sum(axis=1, keepdims=True)


@given(st.data(), placements(), st.integers(1, 70))
def test_weighted_shares_are_within_one_token_of_every_prefix(
    data: st.DataObject, placement: Placement, rows: int
) -> None:
    weights = data.draw(weights_of(placement))
    table = placement.weighted_routing_table(0, 0, weights, rows=rows)
    assert table.dtype == np.int32
    assert table.shape == (rows, placement.num_logical_experts)
    for expert in range(placement.num_logical_experts):
        for index, slot in enumerate(placement.logical_to_physical[0, expert]):
            if slot < 0:
                continue
            taken = np.cumsum(table[:, expert] == slot)
            asked = weights[expert, index] * np.arange(1, rows + 1)
            assert np.abs(taken - asked).max() < 1 + 1e-6
            assert weights[expert, index] > 0 or taken[-1] == 0


def spread_over_ranks(table_of_rank: list[np.ndarray], tokens: int) -> np.ndarray:
    """Return where every token of every rank goes for expert 0."""
    return np.concatenate([table[np.arange(tokens) % len(table), 0] for table in table_of_rank])


@pytest.mark.parametrize("tokens", [1, 2, 64])
@pytest.mark.parametrize("rows", [32, 64, 100])
def test_the_shares_hold_over_32_ranks(tokens: int, rows: int) -> None:
    # Expert 0 has 5 replicas on 32 ranks; the others fill the ranks up.
    placement = Placement([[0, 1] * 5 + list(range(2, 56))], 32, num_logical_experts=56)
    weights = np.zeros((56, 5))
    weights[:, 0] = 1
    weights[0] = [0.5, 0.25, 0.125, 0.1, 0.025]
    weights[1] = 0.2
    tables = [placement.weighted_routing_table(0, rank, weights, rows=rows) for rank in range(32)]
    slots = placement.logical_to_physical[0, 0]
    taken = np.array([(spread_over_ranks(tables, tokens) == slot).sum() for slot in slots])
    periods = max(1, tokens * 32 / rows)
    assert np.abs(taken - 32 * tokens * weights[0]).max() < periods + 1
    if tokens == 1:
        assert np.abs(taken - 32 * weights[0]).max() < 1 + 1e-6
    even = [placement.routing_table(0, rank, rows=rows) for rank in range(32)]
    taken = np.array([(spread_over_ranks(even, tokens) == slot).sum() for slot in slots])
    assert np.abs(taken - 32 * tokens / 5).max() < periods + 1


def test_equal_weights_take_turns() -> None:
    placement = Placement([[0, 1, 0, 2, 0, 3]], 3)
    weights = np.array([[1 / 3] * 3, *[[1, 0, 0]] * 3])
    table = placement.weighted_routing_table(0, 0, weights, rows=6)
    assert sorted(table[:3, 0]) == sorted(table[3:, 0]) == [0, 2, 4]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[1.0], [1.0]], r"has shape \[2, 1\]; expected \[2, 2\]"),
        ([[0.5, 0.4], [1, 0]], r"of expert 0 sum to 0\.9; expected 1"),
        ([[1.5, -0.5], [1, 0]], r"of expert 0, replica 1 is -0\.5; expected at least 0"),
        ([[float("nan"), 1], [1, 0]], "of expert 0, replica 0 is nan"),
        ([[0.5, 0.5], [0.5, 0.5]], r"of expert 1, replica 1 is 0\.5; expected 0, because there is no such"),
    ],
)
def test_weights_that_are_no_shares_are_refused(weights: list[list[float]], message: str) -> None:
    placement = Placement([[0, 1, 0]], 3)
    with pytest.raises(ExpertMapsError, match=message):
        placement.weighted_routing_table(0, 0, np.array(weights))
