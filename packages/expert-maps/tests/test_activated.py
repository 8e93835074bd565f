# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Planning by activated slots: the chances, the bound and the search against plain loops and against all placements."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expert_maps import ExpertMapsError, Placement, evaluate, plan
from expert_maps.activation import Activation, Batch, activated, copy_chances
from expert_maps.by_activation import Asked
from expert_maps.layered import LayeredPlacement
from expert_maps.policies import activated as fast
from expert_maps.reference import activated as slow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def tables(seed: int) -> Iterator[tuple[NDArray[np.float64], int, int]]:
    """Yield chances [E, C] with ranks and slots, small and of every regime: one slot a rank, two, no copies, many."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        ranks, experts = int(rng.integers(1, 6)), int(rng.integers(2, 11))
        per_rank = int(rng.integers(-(-experts // ranks), experts + 1))
        slots = ranks * per_rank
        load = rng.choice(
            [rng.random(experts), rng.lognormal(sigma=1.5, size=experts), 1 / np.arange(1, experts + 1)]
        )
        batch = Batch(int(rng.choice([1, 4, 30, 300])), 1)
        copies = np.arange(1, fast.most_copies(experts, ranks, slots) + 1)
        yield copy_chances(load[None], batch, copies), ranks, slots


def test_chances_equal_the_formula() -> None:
    load = np.array([[6.0, 3.0, 2.0, 1.0, 0.0]])
    copies = np.array([1, 2, 5])
    found = copy_chances(load, Batch(8, 2), copies)
    wanted = [[slow.chance_of_share(share, 8, 2, c) for c in (1, 2, 5)] for share in (load[0] / 12).tolist()]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose(copy_chances(load, Batch(8, 2, "one"), copies), found[:, :1] / copies)
    assert not copy_chances(np.zeros((1, 5)), Batch(8, 2), copies).any()


def test_chances_of_batches_equal_a_plain_loop_and_tokens_thrown() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(2.0, size=(40, 3)).astype(np.float64)
    found = copy_chances(counts, Batch(), np.array([1, 3]))
    wanted = [[slow.chance_of_batches(expert.astype(int).tolist(), c) for c in (1, 3)] for expert in counts.T]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    # Tokens that choose among three copies: how often the first of them gets any.
    thrown = np.mean([[(rng.integers(3, size=int(n)) == 0).any() for n in counts[:, 0]] for _ in range(400)])
    assert found[0, 1] == pytest.approx(thrown, abs=0.02)


def test_the_metric_equals_a_plain_loop_also_where_slots_differ_by_layer() -> None:
    rows = [[[0, 1], [2, 0]], [[2, 1, 0], [0, 1, 2]]]
    load, batch = np.array([[5.0, 3, 2], [1, 2, 7]]), Batch(6, 1)
    placement = LayeredPlacement.from_rank_lists(rows)
    found = activated(placement, load, batch)
    for layer, ranks in enumerate(rows):
        held = [expert for rank in ranks for expert in rank]
        for rank, experts in enumerate(ranks):
            wanted = sum(slow.chance_of_share(load[layer, e] / 10, 6, 1, held.count(e)) for e in experts)
            assert found[layer, rank] == pytest.approx(wanted, rel=1e-12)
    uneven = Placement([[0, 1, 2]], 2, num_logical_experts=3)
    assert activated(uneven, load[:1], batch).sum() == pytest.approx(
        sum(slow.chance_of_share(share, 6, 1, 1) for share in (0.5, 0.3, 0.2))
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_part_equals_its_twin(seed: int) -> None:
    for table, ranks, slots in tables(seed):
        rows = table.tolist()
        assert fast.lower_bound(table, ranks, slots) == pytest.approx(
            slow.lower_bound(rows, ranks, slots), rel=1e-9
        )
        for limit in (np.inf, float(np.quantile(table, 0.7))):
            mine, theirs = fast.cheapest_counts(table, slots, limit), slow.cheapest_counts(rows, slots, limit)
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                assert mine[0].tolist() == theirs[0]
                assert mine[1] == pytest.approx(theirs[1], rel=1e-12)
                packed = fast.pack(table, mine[0], ranks)
                assert packed.tolist() == slow.pack(rows, theirs[0], ranks)
                state = fast.State.of(table, packed)
                fast.descend(state, 0.0)
                there = packed.tolist()
                slow.descend(rows, there, 0.0)
                assert sorted(state.load) == pytest.approx(sorted(slow.loads(rows, there)), rel=1e-9)
        for chance in np.quantile(table, [0.0, 0.3, 0.8, 1.0]).tolist():
            assert fast.copies_above(table, chance, slots) == slow.copies_above(rows, chance, slots)


def placements(experts: int, ranks: int, per_rank: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield all placements of a layer; ranks are alike."""

    def extend(placed: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        if len(placed) == ranks:
            if len({expert for rank in placed for expert in rank}) == experts:
                yield placed
            return
        for rank in combinations(range(experts), per_rank):
            if not placed or rank >= placed[-1]:
                yield from extend([*placed, rank])

    return extend([])


@pytest.mark.parametrize(
    ("experts", "ranks", "per_rank"), [(4, 2, 3), (4, 3, 2), (5, 3, 2), (3, 4, 1), (4, 4, 1), (6, 2, 3)]
)
def test_no_placement_is_below_the_bound_and_most_plans_are_the_best_there_is(
    experts: int, ranks: int, per_rank: int
) -> None:
    rng = np.random.default_rng(experts * 100 + ranks)
    best_found = 0
    for tokens in (1, 3, 10, 40):
        load = rng.lognormal(sigma=1.2, size=(4, experts))
        batch = Batch(tokens, 1)
        result = plan(
            load, ep_size=ranks, num_physical_experts=ranks * per_rank, objective="activated", batch=batch
        )
        assert result.activation is not None
        for layer in range(4):
            copies = np.arange(1, fast.most_copies(experts, ranks, ranks * per_rank) + 1)
            table = copy_chances(load[layer][None], batch, copies).tolist()
            optimum = min(
                max(slow.loads(table, [list(rank) for rank in each]))
                for each in placements(experts, ranks, per_rank)
            )
            assert result.activation.lower_bound[layer] <= optimum * (1 + 1e-9)
            found = result.activation.busiest[layer]
            assert optimum * (1 - 1e-9) <= found <= optimum * 1.35
            best_found += found <= optimum * 1.0005
    assert best_found >= 10  # of 16


@pytest.mark.parametrize("copies", ["split", "one"])
def test_a_plan_is_never_worse_by_its_own_measure_and_says_what_it_is_worth(copies: str) -> None:
    rng = np.random.default_rng(5)
    load = rng.lognormal(sigma=1.0, size=(6, 32))
    for tokens, ranks, slots in ((4, 8, 40), (32, 8, 32), (200, 16, 48), (16, 4, 64)):
        batch = Batch(tokens, 2, copies)  # type: ignore[arg-type]
        counts: dict[str, Any] = {"ep_size": ranks, "num_physical_experts": slots}
        by_tokens = activated(plan(load, **counts), load, batch).max(axis=1)
        result = plan(load, **counts, objective="activated", batch=batch)
        found = result.activation
        assert isinstance(found, Activation)
        np.testing.assert_array_equal(found.by_tokens, by_tokens)
        assert (found.busiest <= by_tokens).all()
        np.testing.assert_array_equal(found.of_rank, activated(result, load, batch))
        assert (found.lower_bound <= found.busiest).all()
        assert found.overall_gap < 0.12
        assert "above a proved lower bound" in result.summary()
        assert "activated slots" in result.summary()
        assert evaluate(result, load).overall_balancedness == result.overall_balancedness


def test_copies_go_where_they_cost_least_and_one_copy_in_turn_activates_less() -> None:
    # One expert in every token: with its tokens split each of its copies would be active in nearly every batch.
    load = np.array([[80.0, 20, 20, 20, 10, 10, 0, 0]])
    split, turns = (
        plan(load, ep_size=4, num_physical_experts=12, objective="activated", batch=Batch(64, 2, copies))
        for copies in ("split", "one")
    )
    by_tokens = plan(load, ep_size=4, num_physical_experts=12).placement.replica_count[0]
    assert by_tokens[0] > 1
    assert split.placement.replica_count[0, 0] == 1
    assert split.placement.replica_count[0, 6:].sum() > by_tokens[6:].sum()
    assert turns.placement.replica_count[0, 0] > 1
    assert split.activation is not None
    assert turns.activation is not None
    assert turns.activation.busiest[0] < split.activation.busiest[0]


def test_steps_that_are_batches_are_planned_for_as_they_are() -> None:
    rng = np.random.default_rng(2)
    steps = rng.poisson(1.0, size=(50, 2, 12)).astype(np.float64)
    result = plan(steps, ep_size=4, objective="activated", batch=Batch())
    assert result.activation is not None
    chance = (steps > 0).mean(axis=0)
    for layer in range(2):
        for rank in range(4):
            wanted = chance[layer, result.placement.local_experts(layer, rank)].sum()
            assert result.activation.of_rank[layer, rank] == pytest.approx(wanted)
    assert result.activation.overall_gap < 0.05


LOAD = np.array([[4.0, 2, 1, 1]])


@pytest.mark.parametrize(
    ("load", "options", "message"),
    [
        (LOAD, {"objective": "latency"}, "objective is 'latency'; expected one of tokens, activated"),
        (LOAD, {"objective": "activated"}, "objective is 'activated' with no batch; expected a batch"),
        (
            LOAD,
            {"batch": Batch(4, 1)},
            "objective is 'tokens' with a batch; expected a batch with 'activated'",
        ),
        (
            LOAD,
            {"batch": Batch(4, 2), "objective": "activated", "policy": "deepseek"},
            "policy is 'deepseek'; expected objective 'tokens'",
        ),
        (
            LOAD,
            {"batch": Batch(4, 2), "objective": "activated", "num_nodes": 2, "num_groups": 2},
            "num_nodes is 2; expected objective 'tokens'",
        ),
        (
            LOAD,
            {"batch": Batch(4, 2), "objective": "activated", "certify": True},
            "certify is True; expected objective",
        ),
        (
            LOAD,
            {"batch": Batch(4, 2), "objective": "activated", "current": Placement([[0, 1, 2, 3]], 2)},
            "current is given; expected objective",
        ),
        (
            LOAD,
            {"batch": Batch(4, 2), "objective": "activated", "num_physical_experts": 5, "allow_uneven": True},
            "num_physical_experts is 5; expected objective",
        ),
        (LOAD, {"batch": Batch(4, 5), "objective": "activated"}, "top_k is 5; expected at most 4"),
        (
            LOAD,
            {"batch": Batch(4, 3), "objective": "activated"},
            "top_k is 3, and expert 0 has 50.0% of layer 0's load; expected at most 33.3%",
        ),
        (
            LOAD,
            {"batch": Batch(), "objective": "activated"},
            "batch_tokens is not given, and the load has 1 step; expected batch_tokens",
        ),
        (
            np.array([[[1.0, 2]], [[1, 0.5]]]),
            {"batch": Batch(), "objective": "activated"},
            "load at step 1, layer 0, expert 1 is 0.5; expected whole tokens",
        ),
    ],
)
def test_what_cannot_be_planned_for_is_refused(
    load: NDArray[np.float64], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ExpertMapsError) as found:
        plan(load, ep_size=2, **options)  # type: ignore[arg-type]
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0, "top_k": 2}, "batch_tokens is 0; expected at least 1"),
        ({"tokens": 4}, "batch_tokens is 4 without top_k; expected both"),
        ({"top_k": 4}, "top_k is 4 without batch_tokens; expected both"),
        ({"tokens": 4, "top_k": 1.5}, "top_k is 1.5; expected an integer"),
        ({"copies": "none"}, "copies is 'none'; expected one of split, one"),
    ],
)
def test_what_is_no_batch_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ExpertMapsError, match=message):
        Batch(**values)  # type: ignore[arg-type]


def test_a_bound_above_its_plan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "lower_bound", lambda table, *_: table.sum())
    with pytest.raises(AssertionError, match="lower bound of layer 0 is"):
        plan(LOAD, ep_size=2, objective="activated", batch=Batch(4, 2))


def test_objectives_are_those_of_the_command_line() -> None:
    from expert_maps.activation import COPY_CHOICES
    from expert_maps.by_activation import OBJECTIVES
    from expert_maps.cli import aims

    assert aims.OBJECTIVES == OBJECTIVES
    assert aims.COPIES == COPY_CHOICES
    assert Asked().objective == OBJECTIVES[0]
