# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Our planner in vllm-ascend's dynamic EPLB: what each rank is told to send, to receive and to serve."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expert_maps import Placement, generate_placement
from vllm_ascend_moe.backends.ascend.planning import Planner, planner_for, transfers
from vllm_ascend_moe.backends.one_plan import OnePlan
from vllm_ascend_moe.core.gain import MoveRule
from vllm_ascend_moe.core.meter import Meter
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.hooks.wrapping import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, EXPERTS, RANKS, REDUNDANT = 3, 16, 4, 4
SLOTS = EXPERTS + REDUNDANT
# Also what is worse.
EVERYTHING = MoveRule(min_gain=-1.0)


class Told:
    """A policy that returns what it is told, and keeps what it was asked."""

    def __init__(self, rows: Any) -> None:  # noqa: ANN401 - an array, or an exception
        self.rows = rows
        self.weight: Any = None

    def rebalance_experts(self, weight: torch.Tensor, *_: object) -> torch.Tensor:
        self.weight = weight
        if isinstance(self.rows, Exception):
            raise self.rows
        return torch.from_numpy(np.asarray(self.rows, dtype=np.int64))


def shuffled(seed: int, *, layers: int = LAYERS) -> Placement:
    """A placement in which every rank has some copies, in any order."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(layers):
        base = generate_placement("ring", num_experts=EXPERTS, ep_size=RANKS, num_redundant_experts=REDUNDANT)
        names = draw.permutation(EXPERTS)
        ranks = names[base.physical_to_logical[0]].reshape(RANKS, -1)
        rows.append(np.concatenate([draw.permutation(rank) for rank in draw.permutation(ranks)]))
    return Placement(np.array(rows), RANKS, num_logical_experts=EXPERTS)


def planner(
    start: Placement,
    told: Told,
    rank: int,
    load: torch.Tensor | None = None,
    record: Callable[[torch.Tensor], None] | None = None,
) -> Planner:
    shape = (start.num_layers, RANKS, start.num_physical_experts // RANKS)
    found = torch.ones(shape, dtype=torch.int32) if load is None else load
    return Planner(
        OnePlan(told, EVERYTHING, None),
        start,
        lambda: found,
        ep_rank=rank,
        num_groups=1,
        num_nodes=1,
        tp_sizes=[1] * start.num_layers,
        record=record,
    )


def answer(one: Planner) -> list[Any]:
    """Ask as vllm-ascend's runner does."""
    one.put(1)
    one.share()
    return one.get()


def test_without_being_woken_nothing_moves() -> None:
    one = planner(shuffled(1), Told(shuffled(2).physical_to_logical), 0)
    one.share()
    assert [task[:2] for task in one.get()] == [([], [])] * LAYERS
    answer(one)
    assert one.moves
    # A proposal is told once.
    one.share()
    one.get()
    assert not one.moves


def test_ranks_exchange_nothing_where_vllm_ascend_asks_for_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    # There one data-parallel rank may be before an exchange of its step's and another after it: both would wait for ever.
    one = planner(shuffled(1), Told(shuffled(2).physical_to_logical), 0)
    assert one._plan is not None
    one._plan._group = object()  # type: ignore[assignment]
    exchanged = []
    for name in ("get_rank", "get_global_rank"):
        monkeypatch.setattr(torch.distributed, name, lambda *_: 0)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_: exchanged.append("broadcast"))
    one.put(1)
    with pytest.raises(UpstreamError, match="has not been told to all ranks"):
        one.get()
    one.share()
    assert exchanged == ["broadcast"]
    assert [task[-1] for task in one.get()] == list(range(LAYERS))
    assert exchanged == ["broadcast"]


def test_a_step_that_failed_after_it_had_the_plan_is_named_as_the_reason() -> None:
    # Beside a rank that died: vLLM runs the steps that were queued behind the one that failed.
    one = planner(shuffled(1), Told(shuffled(2).physical_to_logical), 0)
    one.put(1)
    one.share()
    one.get()
    with pytest.raises(UpstreamError, match="the step that asked has failed"):
        one.get()
    one.share()
    one.get()


def test_the_load_is_read_while_others_serve_and_its_failure_is_no_plan(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = planner(shuffled(1), Told(shuffled(2).physical_to_logical), 0)

    def fail() -> torch.Tensor:
        raise EOFError

    one._read_load = fail
    answer(one)
    assert not one.moves
    assert "no plan could be made" in caplog.text


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_after_the_transfers_every_slot_holds_its_expert(first: int, second: int) -> None:
    before = shuffled(first)
    # As a plan is: an expert that stays on its rank keeps its slot.
    after = kept(shuffled(second), before)
    planners = [planner(before, Told(after.physical_to_logical), rank) for rank in range(RANKS)]
    tasks = [answer(one) for one in planners]
    width = SLOTS // RANKS
    for layer in range(LAYERS):
        held = before.physical_to_logical[layer].reshape(RANKS, width)
        new = held.copy()
        wire: dict[tuple[int, int], list[int]] = {}
        for rank in range(RANKS):
            for other, expert in tasks[rank][layer][0]:
                assert expert in held[rank]
                wire.setdefault((rank, other), []).append(expert)
        for rank in range(RANKS):
            _, received, expert_map, log2phy, index = tasks[rank][layer]
            assert index == layer
            for other, expert in received:
                # In the order in which it was sent.
                assert wire[other, rank].pop(0) == expert
                new[rank, expert_map[expert]] = expert
            assert np.array_equal(expert_map, after.global_expert_map(layer)[rank])
            assert np.array_equal(log2phy, after.log2phy(layer, rank))
        assert not any(wire.values()), "sent, and received by nobody"
        assert np.array_equal(new.ravel(), after.physical_to_logical[layer])
    assert all(one.moves == (after != before) for one in planners)


def kept(plan: Placement, before: Placement) -> Placement:
    from vllm_ascend_moe.backends.policy import keep_slots

    rows = keep_slots(plan.physical_to_logical, before.physical_to_logical, RANKS)
    return Placement(rows, RANKS, num_logical_experts=EXPERTS)


def test_receivers_of_an_expert_take_its_holders_in_turn() -> None:
    # One expert on ranks 0 and 1 goes to four more.
    old = np.full((1, 6, 1), -1, dtype=np.int32)
    old[0, :2] = 0
    new = np.zeros((1, 6, 1), dtype=np.int32)
    assert transfers(old, new, 0)[0] == [[(2, 0), (4, 0)]]
    assert transfers(old, new, 1)[0] == [[(3, 0), (5, 0)]]
    assert [transfers(old, new, rank)[1] for rank in range(2, 6)] == [
        [[(0, 0)]],
        [[(1, 0)]],
        [[(0, 0)]],
        [[(1, 0)]],
    ]


def test_load_by_slot_is_added_up_by_expert_and_the_next_plan_starts_from_this_one() -> None:
    before, after = shuffled(1), shuffled(2)
    draw = np.random.default_rng(0)
    load = torch.from_numpy(draw.integers(0, 1000, (LAYERS, RANKS, SLOTS // RANKS)))
    told = Told(after.physical_to_logical)
    one = planner(before, told, 0, load)
    for placement in (before, after):
        answer(one)
        wanted = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
        for layer in range(LAYERS):
            for slot, expert in enumerate(placement.physical_to_logical[layer]):
                wanted[layer, expert] += int(load.reshape(LAYERS, -1)[layer, slot])
        assert np.array_equal(told.weight.numpy(), wanted)
    assert not one.moves


@pytest.mark.parametrize("rows", [ValueError("no idea"), np.zeros((2, 2)), np.zeros((LAYERS, SLOTS))])
def test_without_a_plan_nothing_moves_and_it_is_said(rows: object, caplog: pytest.LogCaptureFixture) -> None:
    before = shuffled(3)
    one = planner(before, Told(rows), 2)
    tasks = answer(one)
    assert [task[:2] for task in tasks] == [([], [])] * LAYERS
    assert np.array_equal(tasks[0][2], before.global_expert_map(0)[2])
    assert not one.moves
    assert one.placement == before
    assert "no plan could be made, so that the placement stays as it is" in caplog.text


def test_where_a_map_is_recorded_the_plan_is_told_and_does_not_become_the_present() -> None:
    before, after = shuffled(4), shuffled(5)
    told: list[torch.Tensor] = []
    one = planner(before, Told(after.physical_to_logical), 0, record=told.append)
    answer(one)
    assert np.array_equal(told[0].numpy(), after.global_expert_map())
    assert one.placement == before


@pytest.mark.parametrize(
    ("min_gain", "records", "wanted"), [(None, False, None), (None, True, 0.0), (0.2, True, 0.2)]
)
def test_the_settings_and_the_cycle_decide_what_pays(
    min_gain: float | None,
    records: bool,
    wanted: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[MoveRule] = []

    meter = Meter()

    def plan(_: object, rule: MoveRule, group: object, told: object) -> OnePlan:
        assert group == "the ranks"
        assert told is meter
        made.append(rule)
        return OnePlan(Told(before.physical_to_logical), rule, None)

    module = ModuleType("vllm.distributed.eplb.policy")
    vars(module)["AbstractEplbPolicy"] = object
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("vllm_ascend_moe.backends.ascend.planning.OnePlan", plan)
    before = shuffled(6)
    slot = [torch.zeros(4, 8, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.float32)]
    updator = SimpleNamespace(
        expert_heat_collection_interval=10,
        algorithm_execution_interval=27,
        expert_map_record_path="maps.json" if records else None,
        adaptor=SimpleNamespace(expert_param_per_layer={0: [slot]}),
        comm_group=SimpleNamespace(cpu_group="the ranks"),
        shared_dict={"moe_load": torch.ones(LAYERS, RANKS, SLOTS // RANKS)},
    )
    settings = Settings(dynamic=True, min_gain=min_gain, max_layers=2)
    ranks = SimpleNamespace(ep_rank=0, num_nodes=1)
    session: Any = SimpleNamespace(settings=settings, ranks=ranks, meter=meter)
    one = planner_for(session, updator, before, [1] * LAYERS, 1)
    (rule,) = made
    assert (rule.min_gain, rule.max_layers) == (wanted, 2)
    # A cycle counts for 10 steps, plans for 27 and moves a layer a step.
    assert rule.windows == (10 + 27 + LAYERS) / 10
    assert rule.slot_tokens == pytest.approx((32 * 2 + 8 * 4) / 2.5e10 * 3e14 / (2 * 40))
    answer(one)
    assert ("expert_maps" in updator.shared_dict) is records


def test_transfers_are_those_of_a_plain_loop() -> None:
    draw = np.random.default_rng(3)
    for _ in range(40):
        # Each rank holds each expert or not, in any slot; every expert is somewhere.
        old, new = (np.where(draw.random((3, 4, 6)) < 0.4, 0, -1).astype(np.int32) for _ in range(2))
        old[:, 0] = np.where((old < 0).all(axis=1), 0, old[:, 0])
        expected: list[tuple[int, int, int, int]] = []
        for layer, expert in np.ndindex(3, 6):
            holders = np.flatnonzero(old[layer, :, expert] >= 0)
            missing = np.flatnonzero((old[layer, :, expert] < 0) & (new[layer, :, expert] >= 0))
            expected += [
                (layer, int(receiver), expert, int(holders[turn % len(holders)]))
                for turn, receiver in enumerate(missing)
            ]
        for rank in range(4):
            sent, received = transfers(old, new, rank)
            for layer in range(3):
                of_layer = sorted(one[1:] for one in expected if one[0] == layer)
                assert sent[layer] == [(to, expert) for to, expert, sender in of_layer if sender == rank]
                assert received[layer] == [(sender, expert) for to, expert, sender in of_layer if to == rank]
