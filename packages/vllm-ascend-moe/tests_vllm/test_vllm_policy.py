# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The planner behind vLLM's policy interface, in the `vllm` session."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.distributed.eplb.policy import AbstractEplbPolicy

from expert_maps import (
    POLICY_NAMES,
    LayoutError,
    LoadError,
    Placement,
    balancedness,
    generate_placement,
    plan,
)
from vllm_ascend_moe.backends.one_plan import OnePlan
from vllm_ascend_moe.backends.policy import keep_slots, make_policy
from vllm_ascend_moe.core.gain import MoveRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def load(layers: int = 3, experts: int = 16, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).lognormal(sigma=2, size=(layers, experts))


def rebalance(
    weight: NDArray[np.float64],
    *,
    policy: str | None = None,
    replicas: int = 20,
    groups: int = 1,
    nodes: int = 1,
    ranks: int = 4,
    old: torch.Tensor | None = None,
    max_moves: int | None = None,
    whole: bool = False,
) -> torch.Tensor:
    made: Any = make_policy(policy, max_moves)
    if whole:  # as it is put into vLLM's EPLB state
        made = OnePlan(made, MoveRule(min_gain=0.0), None)
    return made.rebalance_experts(torch.from_numpy(weight), replicas, groups, nodes, ranks, old)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what the plugin logs: vLLM's logger, above it, does not pass it on to pytest's."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("vllm.ascend_moe")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


# The policy


def test_it_is_a_policy_of_vllms() -> None:
    assert issubclass(make_policy(), AbstractEplbPolicy)


@pytest.mark.parametrize("policy", [None, *POLICY_NAMES])
def test_it_is_the_planner(policy: str | None) -> None:
    options: dict[str, Any] = {} if policy is None else {"policy": policy}
    wanted = plan(load(), num_physical_experts=20, ep_size=4, num_groups=4, num_nodes=2, **options)
    found = rebalance(load(), policy=policy, groups=4, nodes=2)
    assert (found.dtype, found.device.type, list(found.shape)) == (torch.int64, "cpu", [3, 20])
    assert found.tolist() == wanted.placement.physical_to_logical.tolist()


def test_policies_by_name_are_different_ones() -> None:
    found = {name: rebalance(load(), policy=name, groups=4, nodes=2).tolist() for name in POLICY_NAMES}
    assert found["deepseek_hierarchical"] != found["deepseek_global"]


def test_the_same_load_gives_every_rank_the_same_placement() -> None:
    old = torch.from_numpy(
        generate_placement(
            "append", num_experts=16, ep_size=4, num_redundant_experts=4, num_layers=3
        ).physical_to_logical.copy()
    )
    found = [rebalance(load(), old=given_) for given_ in (old, old.clone().long(), old)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_expert_that_stays_on_its_rank_keeps_its_slot() -> None:
    fresh = rebalance(load(), policy="deepseek")
    # Each rank's experts are those of the plan already, in another order: nothing is to be moved.
    old = fresh.view(3, 4, 5).flip(dims=[2]).reshape(3, 20)
    assert not torch.equal(old, fresh)
    assert torch.equal(rebalance(load(), policy="deepseek", old=old), old)
    other = rebalance(load(seed=1), policy="deepseek", old=fresh)
    planned = rebalance(load(seed=1), policy="deepseek")
    assert other.tolist() == keep_slots(planned.numpy(), fresh.numpy(), 4).tolist()


def test_balanced_plans_from_the_present_placement_within_its_budget() -> None:
    weight = load(experts=64)
    before = rebalance(weight, replicas=72, ranks=8)
    shifted = weight * np.random.default_rng(5).lognormal(sigma=0.3, size=weight.shape)
    assert torch.equal(rebalance(weight, replicas=72, ranks=8, old=before), before)
    placed = Placement(before.numpy(), 8, num_logical_experts=64)
    kept = balancedness(placed, shifted)
    for budget in (0, 4, 10):
        after = rebalance(shifted, replicas=72, ranks=8, old=before, max_moves=budget)
        assert (after != before).sum(dim=1).max() <= budget
        wanted = plan(shifted, num_physical_experts=72, ep_size=8, current=placed, max_moves=budget)
        assert after.tolist() == wanted.placement.physical_to_logical.tolist()
        assert (balancedness(Placement(after.numpy(), 8, num_logical_experts=64), shifted) >= kept).all()
    free = rebalance(shifted, replicas=72, ranks=8, old=before)
    fresh = rebalance(shifted, replicas=72, ranks=8)
    assert (free != before).sum() < (fresh != before).sum()


def test_balanced_plans_anew_where_the_present_placement_is_not_one() -> None:
    fresh = rebalance(load())
    twice = fresh.clone()
    twice[:, 1] = twice[:, 0]
    assert torch.equal(rebalance(load(), old=twice, max_moves=3).sort(dim=1).values, fresh.sort(dim=1).values)


def test_from_an_expert_twice_on_a_rank_it_moves_no_more_than_it_must() -> None:
    ranks = [[*range(first, first + 4), first] for first in range(0, 16, 4)]
    twice = torch.tensor([ranks] * 3).flatten(1)
    found = rebalance(load(), old=twice)
    planned = Placement(found.numpy(), 4, num_logical_experts=16)  # none twice any more
    assert planned.num_redundant_experts == 4
    wanted = plan(
        load(),
        num_physical_experts=20,
        ep_size=4,
        current=Placement(twice.numpy(), 4, num_logical_experts=16, allow_duplicates=True),
    )
    assert found.tolist() == wanted.placement.physical_to_logical.tolist()
    assert (found != twice).sum() < (rebalance(load()) != twice).sum()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_loads_of_any_dtype_are_taken(dtype: torch.dtype) -> None:
    weight = torch.from_numpy(load() * 100).to(dtype)
    found = make_policy().rebalance_experts(weight, 20, 1, 1, 4)
    assert found.tolist() == rebalance(weight.numpy().astype(np.float64)).tolist()


@pytest.mark.parametrize("groups", [0, -1, 3, 5])
def test_groups_that_the_router_does_not_have_are_one(groups: int) -> None:
    # vLLM passes on what a model names, and 0 where it names none.
    assert torch.equal(rebalance(load(), groups=groups), rebalance(load(), groups=1))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 6), st.data())
def test_what_it_returns_is_a_placement_near_the_old_one(
    layers: int, experts: int, ranks: int, data: st.DataObject
) -> None:
    slots = data.draw(st.integers(-(-experts // ranks), experts))
    seeds = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, 2**32 - 1))
    old, new = (load(layers, experts, seed) for seed in seeds)
    counts: dict[str, Any] = {"replicas": slots * ranks, "ranks": ranks, "policy": "deepseek"}
    before = rebalance(old, **counts)
    after = rebalance(new, **counts, old=before)
    fresh = rebalance(new, **counts)
    placement = Placement(after.numpy(), ranks, num_logical_experts=experts)
    assert placement.num_layers == layers
    # The plan itself is the planner's: only slots within a rank differ.
    assert torch.equal(after.view(-1, slots).sort(dim=1).values, fresh.view(-1, slots).sort(dim=1).values)
    # The same load again moves nothing.
    assert torch.equal(rebalance(old, **counts, old=before), before)
    assert torch.equal(rebalance(new, **counts, old=after), after)


# Where no plan can be made


@pytest.mark.parametrize(
    ("weight", "options", "error"),
    [
        (load() - 10, {}, LoadError),
        (np.full((3, 16), np.nan), {}, LoadError),
        (load(), {"replicas": 18}, LayoutError),
        (load(), {"nodes": 3}, LayoutError),
        (load(), {"policy": "no such"}, LayoutError),
    ],
)
def test_the_placement_stays_and_it_is_logged(
    weight: NDArray[np.float64],
    options: dict[str, Any],
    error: type[Exception],
    logged: list[logging.LogRecord],
) -> None:
    with pytest.raises(error):
        rebalance(weight, **options)
    assert not logged
    old = torch.arange(options.get("replicas", 20), dtype=torch.int32).remainder(16).repeat(3, 1)
    found = rebalance(weight, old=old, whole=True, **options)
    assert (found.dtype, found.device.type) == (torch.int64, "cpu")
    assert torch.equal(found, old.long())
    (record,) = logged
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(
        f"no plan could be made, so that the placement stays as it is on all ranks: {error.__name__}: "
    )
    assert record.exc_info is None


# Slots


@st.composite
def two_placements(draw: st.DrawFn) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Draw two placements of any experts on the same ranks, experts twice on a rank among them."""
    layers, ranks, slots = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    experts = draw(st.integers(1, 10))
    old, new = (rng.integers(0, experts, size=(layers, ranks * slots), dtype=np.int32) for _ in range(2))
    if draw(st.booleans()):
        # The same experts on each rank, in another order.
        new = rng.permuted(old.reshape(-1, slots), axis=1).reshape(old.shape)
    return new, old, ranks


@settings(deadline=None, max_examples=100)
@given(two_placements())
def test_each_rank_keeps_its_experts_and_they_their_slots(
    drawn: tuple[NDArray[np.int32], NDArray[np.int32], int],
) -> None:
    new, old, ranks = drawn
    given_ = new.copy()
    kept = keep_slots(new, old, ranks)
    np.testing.assert_array_equal(new, given_)
    assert (kept.dtype, kept.shape) == (np.dtype(np.int32), new.shape)
    slots = new.shape[1] // ranks
    for after, plan_, before in zip(
        kept.reshape(-1, slots), new.reshape(-1, slots), old.reshape(-1, slots), strict=True
    ):
        assert sorted(after) == sorted(plan_)
        for expert in set(before.tolist()) & set(plan_.tolist()):
            # As many copies as there were and still are stay where one was.
            stays = min((before == expert).sum(), (plan_ == expert).sum())
            assert ((after == expert) & (before == expert)).sum() == stays


def test_slots_are_kept() -> None:
    old = np.array([[0, 1, 2, 3, 4, 5]], dtype=np.int64)
    new = np.array([[2, 6, 0, 5, 4, 3]], dtype=np.int32)
    assert keep_slots(new, old, 2).tolist() == [[0, 6, 2, 3, 4, 5]]
    # On another rank an expert has no slot to keep.
    assert keep_slots(np.array([[3, 4, 5, 0, 1, 2]], dtype=np.int32), old, 2).tolist() == [[3, 4, 5, 0, 1, 2]]
    assert keep_slots(new, old, 1).tolist() == [[0, 6, 2, 3, 4, 5]]


def test_the_order_in_memory_does_not_count() -> None:
    old = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], dtype=np.int32)
    new = np.array([[1, 0, 3, 2], [1, 0, 2, 3]], dtype=np.int32)
    assert keep_slots(np.asfortranarray(new), np.asfortranarray(old), 2).tolist() == old.tolist()
