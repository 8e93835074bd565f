# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Beside vllm-ascend's runner V2: its layers' tables follow every commit, and what has moved is compared."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_vllm
import numpy as np
import pytest
import torch

from expert_maps import Placement
from vllm_ascend_moe import releases
from vllm_ascend_moe.backends import ascend_v2
from vllm_ascend_moe.backends.ascend.front_v2 import AscendV2Front
from vllm_ascend_moe.backends.ascend_v2 import AscendV2
from vllm_ascend_moe.backends.one_plan import OnePlan
from vllm_ascend_moe.core.activation import Activation
from vllm_ascend_moe.core.agreement import DisagreementError
from vllm_ascend_moe.core.checksums import slot_checksums
from vllm_ascend_moe.core.replicas import SlotRule, written_out
from vllm_ascend_moe.core.session import Session, has_sessions
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Iterator

RELEASE = releases.NEWEST
EXPERTS, RANKS, ROWS = 4, 2, 24
# Two layers on two ranks, two copies each: of experts 0 and 1, and of 2 and 3.
PLACED = [[0, 1, 2, 3, 0, 1], [2, 3, 0, 1, 2, 3]]
MOVED = [[0, 1, 2, 3, 2, 1], [2, 3, 0, 1, 2, 3]]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake_vllm.install(monkeypatch, table.beside_v2(RELEASE), platform="ascend", version=RELEASE.vllm)
    group = SimpleNamespace(world_size=RANKS, rank_in_group=1, cpu_group=None, device_group="device")
    for hook in (table.EP_GROUP, table.EPLB_GROUP):
        fake_vllm.replace(monkeypatch, hook, lambda: group)
    fake_vllm.replace(monkeypatch, table.PP_GROUP, lambda: SimpleNamespace(world_size=1, rank_in_group=0))
    fake_vllm.replace(monkeypatch, table.NODE_COUNT, lambda: 1)
    monkeypatch.setattr(wrapping, "vllm_ascend_version", lambda: RELEASE.vllm_ascend)
    monkeypatch.setattr(ascend_v2, "chip", lambda: "A3")
    yield
    wrapping.restore()
    gc.collect()
    assert not has_sessions(), "an engine that is gone is kept alive"


def weights(rows: list[list[int]], rank: int = 1) -> list[list[torch.Tensor]]:
    """Return what a rank holds in its slots: of expert e in layer l, 10 l + e."""
    own = np.array(rows)[:, rank * 3 : rank * 3 + 3]
    return [
        [torch.tensor([[10.0 * layer + expert] * 2 for expert in row])]
        for layer, row in enumerate(own.tolist())
    ]


def sums() -> Any:  # noqa: ANN401 - an array
    each = [[torch.tensor([[10.0 * layer + expert] * 2 for expert in range(EXPERTS)])] for layer in range(2)]
    return np.stack([slot_checksums(tensors, EXPERTS).numpy() for tensors in each])


def model_state(rows: list[list[int]]) -> Any:  # noqa: ANN401 - vLLM's
    layers = [
        SimpleNamespace(
            eplb_state=SimpleNamespace(
                expert_replica_routing_table=torch.full((ROWS, EXPERTS), -5, dtype=torch.int32)
            )
        )
        for _ in rows
    ]
    model = SimpleNamespace(
        moe_layers=layers,
        num_moe_layers=len(rows),
        num_logical_experts=EXPERTS,
        num_local_physical_experts=3,
        expert_weights=weights(rows),
    )
    return SimpleNamespace(
        model=model,
        physical_to_logical_map=torch.tensor(rows),
        expert_load_pass=torch.zeros(len(rows), 6, dtype=torch.int32),
        pending_result=None,
    )


def backend(**settings: Any) -> AscendV2:  # noqa: ANN401 - of the plugin
    config = fake_vllm.config(
        Activation(Settings(**settings), "a test", backend="ascend_v2.AscendV2"),
        num_experts=EXPERTS,
        device="npu",
        load_format="auto",
        world_size=RANKS,
    )
    config.parallel_config.tensor_parallel_size = RANKS
    text = {"num_experts_per_tok": 2, "num_hidden_layers": 2}
    config.model_config.hf_text_config = SimpleNamespace(**text, to_dict=lambda: text)
    config.model_config.quantization = config.lora_config = None
    from vllm_ascend_moe.backends.ranks import Ranks

    session = Session(config, Activation(Settings(**settings), "a test"), Ranks(config))
    session.backend = AscendV2(session)
    made: AscendV2 = session.backend
    return made


def serve(made: AscendV2, rows: list[list[int]]) -> Any:  # noqa: ANN401 - vLLM's
    state = model_state(rows)
    made.main_state, made.expert_sums = state, sums()
    made.session.attach(state)
    made._rules[id(state)] = made.slot_rule(state.model, is_main=True)
    return state


def wanted(rows: list[list[int]], layer: int, rule: SlotRule) -> torch.Tensor:
    placement = Placement(np.array(rows[layer : layer + 1]), RANKS, num_logical_experts=EXPERTS)
    slots, count = rule.tables(placement)
    return torch.from_numpy(written_out(slots[0], count[0], ROWS))


def routes(state: Any, layer: int) -> torch.Tensor:  # noqa: ANN401 - vLLM's
    found: torch.Tensor = state.model.moe_layers[layer].eplb_state.expert_replica_routing_table
    return found


@pytest.mark.parametrize(("chip", "turn", "agree"), [("A3", 1, False), ("A2", 0, True)])
def test_tables_are_written_alike_where_all_ranks_have_all_tokens(
    chip: str, turn: int, agree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ascend_v2, "chip", lambda: chip)
    made = backend()
    state = serve(made, PLACED)
    held = [routes(state, layer) for layer in range(2)]
    made.write_slots(state)
    for layer in range(2):
        rule = SlotRule("rank_offset", turn, ranks_must_agree=agree)
        assert torch.equal(held[layer], wanted(PLACED, layer, rule))
        assert routes(state, layer) is held[layer], "a captured graph reads the table where it is"


def test_a_draft_model_whose_experts_would_move_is_refused() -> None:
    made = backend()
    model = SimpleNamespace(num_moe_layers=1)
    with pytest.raises(
        EplbConfigError, match=r"is a draft model with 1 MoE layers, .*; expected a draft model without"
    ):
        made.add_model(SimpleNamespace(model_states={}), model, SimpleNamespace())
    assert made.state is None


def test_a_layer_without_a_table_stops_the_start() -> None:
    made = backend()
    state = serve(made, PLACED)
    state.model.moe_layers[1].eplb_state = None
    with pytest.raises(wrapping.UpstreamError, match="MoE layer 1 has no expert_replica_routing_table"):
        made.write_slots(state)


def move(state: Any, result: Any, rows: list[list[int]] | None) -> None:  # noqa: ANN401 - vLLM's
    """Do what vllm-ascend does: move a layer's experts, commit, and forget the result."""

    def original(model_state: Any, ep_rank: int) -> None:  # noqa: ANN401
        assert ep_rank == 1
        if rows is not None:
            for held, new in zip(model_state.model.expert_weights, weights(rows), strict=True):
                held[0].copy_(new[0])
            model_state.physical_to_logical_map.copy_(torch.tensor(rows))
        model_state.pending_result = None

    state.pending_result = result
    ascend_v2._around_move(original, model_state=state, ep_rank=1)


def test_a_layer_that_has_moved_is_routed_compared_and_counted() -> None:
    made = backend()
    state = serve(made, PLACED)
    rule = SlotRule("rank_offset", 1)
    move(state, SimpleNamespace(layer_idx=0, is_last_result=False), MOVED)
    assert torch.equal(routes(state, 0), wanted(MOVED, 0, rule))
    assert made.session.rearrangements == 0
    move(state, SimpleNamespace(layer_idx=1, is_last_result=True), MOVED)
    assert made.session.rearrangements == 1
    # A round in which nothing moves is none.
    for result in (SimpleNamespace(layer_idx=None, is_last_result=True), None):
        move(state, result, None)
    assert made.session.rearrangements == 1
    # Another engine's is nobody's business here.
    other = model_state(PLACED)
    move(other, SimpleNamespace(layer_idx=0, is_last_result=True), MOVED)
    assert int(routes(other, 0).max()) == -5


def test_a_slot_that_holds_something_else_stops_the_server() -> None:
    state = serve(backend(), PLACED)
    wrong = [[*MOVED[0][:4], 3, 1], MOVED[1]]
    result = SimpleNamespace(layer_idx=0, is_last_result=True)
    move(state, result, MOVED)
    for held, new in zip(state.model.expert_weights, weights(wrong), strict=True):
        held[0].copy_(new[0])
    with pytest.raises(
        DisagreementError, match=r"slot 1 of MoE layer 0 on rank 1 does not hold.*expert 2 \(1 such"
    ):
        move(state, result, None)


@pytest.mark.parametrize("is_dummy", [True, False])
def test_load_is_that_of_every_ranks_own_slots(is_dummy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = backend(record_path="load.npz")
    added: list[torch.Tensor] = []
    reduced: list[str] = []
    made.record(is_dummy=False)  # before there is a model
    state = serve(made, PLACED)
    made.state = SimpleNamespace()
    made.session.recorder = SimpleNamespace(add=added.append, num_rows=0)  # type: ignore[assignment]
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _, group: reduced.append(group))
    state.expert_load_pass += torch.arange(6, dtype=torch.int32)
    made.record(is_dummy=is_dummy)
    assert reduced == ["device"]
    by_expert = [[0 + 4, 1 + 5, 2, 3], [2, 3, 0 + 4, 1 + 5]]
    assert added[0].tolist() == ([[0] * 4] * 2 if is_dummy else by_expert)
    # Or vllm-ascend would never rearrange by another policy than its own.
    assert made.state._has_fresh_recorded_load


def test_vllm_ascends_own_policy_stays_as_it_is() -> None:
    theirs = object()
    made, state = backend(policy="vllm", dynamic=True), SimpleNamespace(policy=theirs)
    made.set_policy(state, None)
    assert state.policy is theirs
    made.state = state
    serve(made, PLACED)
    made.record(is_dummy=False)
    assert not hasattr(state, "_has_fresh_recorded_load")


def test_the_planner_takes_the_policys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_ascend_moe.backends import rules, vllm_eplb

    monkeypatch.setattr(vllm_eplb, "make_policy", lambda *_: "ours")
    monkeypatch.setattr(rules, "move_rule", lambda *_: None)
    state = SimpleNamespace(policy="theirs")
    backend(dynamic=True).set_policy(state, None)
    assert isinstance(state.policy, OnePlan)
    assert state.policy._planner == "ours"


def test_new_weights_are_refused() -> None:
    made = backend()
    made.begin_reload("reload_weights")
    serve(made, PLACED)
    with pytest.raises(EplbConfigError, match="reload_weights was called while experts stand"):
        made.begin_reload("reload_weights")


def test_every_hook_is_one_that_is_checked_and_a_loader_must_come_by() -> None:
    made = backend()
    made.install()
    assert {table.MOVE_TO_WORKSPACE, table.INITIALIZE_MODEL, table.INITIALIZE_MODEL_UTIL} <= set(
        made.more_hooks()
    )
    wrapping.forget_calls()
    with pytest.raises(wrapping.UpstreamError, match="initialize_model was never called"):
        made.finish_loading()


def test_the_front_is_taken_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_ascend_moe import backends

    for value, wanted_backend in (("0", "ascend_v1.AscendV1"), ("1", "ascend_v2.AscendV2")):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        assert backends.front().backend == wanted_backend
    facts = AscendV2Front().facts()
    assert facts.release is not None
    assert facts.release["runner V2"] == "served"
    assert "load_collection_phase other than all" in facts.refused
    assert AscendV2Front(releases.RELEASES[0]).hooks() == ()
