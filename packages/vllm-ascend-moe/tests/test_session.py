# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Engines in one process, active and inactive: each hook finds its own, and one that is never called stops the start."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_vllm
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from expert_maps import ExpertMapsError, read_load
from vllm_ascend_moe.backends import worker as workers
from vllm_ascend_moe.backends.vllm_eplb import VllmEplb
from vllm_ascend_moe.core.activation import Activation
from vllm_ascend_moe.core.session import Session, State, StateError, has_sessions, session_of
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.hooks import table, wrapping
from vllm_ascend_moe.report import WorkerReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXPERTS, LAYERS = 4, 2


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake_vllm.install(monkeypatch, platform="cuda")
    alone = SimpleNamespace(world_size=1, rank_in_group=0)
    for hook in (table.EP_GROUP, table.PP_GROUP):
        fake_vllm.replace(monkeypatch, hook, lambda: alone)
    fake_vllm.replace(monkeypatch, table.FIND_MOE_MODEL, lambda model: model)
    fake_vllm.replace(monkeypatch, table.NODE_COUNT, lambda: 1)
    yield
    wrapping.restore()
    gc.collect()
    assert not has_sessions(), "an engine that is gone is kept alive"


def config(*, active: bool = True, **settings: Any) -> SimpleNamespace:  # noqa: ANN401 - of the plugin
    given = Settings(policy="vllm", **settings) if active else None
    return fake_vllm.config(
        Activation(given, "a test", backend="vllm_eplb.VllmEplb"),
        num_experts=EXPERTS,
        device="cuda",
        load_format="dummy",
        enable_eplb=active,
        eplb_config=SimpleNamespace(step_interval=8, window_size=8),
    )


def model() -> SimpleNamespace:
    return SimpleNamespace(
        num_moe_layers=LAYERS,
        moe_layers=[SimpleNamespace()] * LAYERS,
        num_expert_groups=1,
        num_logical_experts=EXPERTS,
        num_redundant_experts=0,
        num_local_physical_experts=EXPERTS,
        expert_weights=[[torch.zeros(EXPERTS, 2)]] * LAYERS,
    )


def eplb_state(made: SimpleNamespace) -> Any:  # noqa: ANN401 - vLLM's
    """Return what vLLM has set up for a model on one rank: every expert in the slot of its number."""
    state = SimpleNamespace(
        model=made,
        physical_to_logical_map=torch.arange(EXPERTS).repeat(LAYERS, 1),
        logical_to_physical_map=torch.full((LAYERS, EXPERTS, 8), -1),
        logical_replica_count=torch.zeros(LAYERS, EXPERTS, dtype=torch.long),
        expert_load_pass=torch.ones(LAYERS, EXPERTS, dtype=torch.int32),
    )
    return SimpleNamespace(model_states={"main": state}, policy=None)


def hooked(hook: table.Hook) -> Callable[..., Any]:
    found: Callable[..., Any] = wrapping._find(hook)[2]
    return found


class Worker:
    """As vLLM's: it loads a model in the way that it is told."""

    def __init__(self, made: SimpleNamespace, *, calls: tuple[table.Hook, ...] = ()) -> None:
        self.config, self.calls = made, calls
        self.model = model()
        self.state: Any = None
        workers.around_worker_init(lambda *_: None, self, made)

    def load_model(self) -> None:
        model_config = self.config.model_config
        if table.INITIALIZE_MODEL in self.calls:
            make = hooked(table.INITIALIZE_MODEL)
            make(vllm_config=self.config, model_config=model_config)
        if table.ADD_MODEL in self.calls:
            self.state = eplb_state(self.model)
            hooked(table.ADD_MODEL)(self.state, self.model, model_config)


def report(worker: Worker) -> dict[str, Any]:
    # vLLM mixes it into its worker.
    return WorkerReport.expert_maps_report(worker)  # type: ignore[arg-type]


BOTH = (table.INITIALIZE_MODEL, table.ADD_MODEL)


@pytest.fixture(autouse=True)
def models(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - first
    fake_vllm.replace(monkeypatch, table.INITIALIZE_MODEL, initialize_model)


def initialize_model(vllm_config: object, model_config: object) -> SimpleNamespace:  # noqa: ARG001 - vLLM's
    return model()


def test_an_engine_is_prepared_then_placed_then_serves_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[State] = []
    advance = Session.advance

    def noted(session: Session, state: State) -> None:
        advance(session, state)
        entered.append(state)

    monkeypatch.setattr(Session, "advance", noted)
    worker = Worker(config(), calls=BOTH)
    session = session_of(worker)
    assert session is not None
    assert session.state is State.PREPARED
    assert "digest" not in report(worker)
    worker.load_model()
    assert report(worker)["digest"]
    session.stop()
    assert entered == [State.PLACED, State.SERVING, State.STOPPING]
    with pytest.raises(StateError, match="the engine is stopping; expected a state before serving"):
        session.advance(State.SERVING)


def test_vllm_s_own_call_at_the_end_of_a_worker_writes_the_record(tmp_path: Path) -> None:
    record = tmp_path / "load.npz"
    worker = Worker(config(record_path=str(record)), calls=BOTH)
    worker.load_model()
    recorder = session_of(worker).recorder  # type: ignore[union-attr]
    assert recorder is not None
    recorder.close = lambda: record.write_text("written")  # type: ignore[method-assign]
    for _ in range(2):  # the worker's own shutdown follows
        record.unlink(missing_ok=True)
        WorkerReport.destroy_worker_extension(worker)  # type: ignore[arg-type]
        assert record.exists()
    WorkerReport.destroy_worker_extension(Worker(config(active=False)))  # type: ignore[arg-type] # nothing to stop


@pytest.mark.parametrize(
    ("calls", "missing"), [((), "initialize_model"), ((table.INITIALIZE_MODEL,), "EplbState.add_model")]
)
def test_a_hook_that_is_never_called_stops_the_start(calls: tuple[table.Hook, ...], missing: str) -> None:
    # As with a model runner that has functions of its own: those that are hooked are there, and fit.
    worker = Worker(config(), calls=calls)
    with pytest.raises(wrapping.UpstreamError, match=f"{missing} was never called while the model was"):
        worker.load_model()
    session = session_of(worker)
    assert session is not None
    assert session.state is State.PREPARED


def test_what_another_engine_called_does_not_count() -> None:
    first = Worker(config(), calls=BOTH)
    first.load_model()
    with pytest.raises(wrapping.UpstreamError, match="never called"):
        Worker(config()).load_model()


def step(worker: Worker, **kwargs: object) -> object:
    return hooked(table.STEP)(worker.state, **kwargs)


@pytest.mark.parametrize("first_is_active", [True, False])
def test_active_and_inactive_engines_share_a_process(
    first_is_active: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_by_plugin: list[object] = []
    make_model = VllmEplb.make_model

    def counted(backend: VllmEplb, make: Callable[[], object], model_config: object) -> object:
        made_by_plugin.append(model_config)
        return make_model(backend, make, model_config)

    monkeypatch.setattr(VllmEplb, "make_model", counted)
    made = [Worker(config(active=active), calls=BOTH) for active in (first_is_active, not first_is_active)]
    for worker in made:
        worker.load_model()
    active, inactive = made if first_is_active else reversed(made)
    assert made_by_plugin == [active.config.model_config]
    # Its tables are as vLLM left them, and its rearrangements are vLLM's.
    assert session_of(inactive) is None
    assert session_of(inactive.state) is None
    assert (inactive.state.model_states["main"].logical_replica_count == 0).all()
    assert hooked(table.REARRANGE)(inactive.state)[0] == table.REARRANGE.name
    # The other one's are the plugin's, whichever came first.
    assert (active.state.model_states["main"].logical_replica_count == 1).all()
    assert hooked(table.REARRANGE)(active.state) is None
    assert report(active)["active"]
    assert not report(inactive)["active"]


def test_two_active_engines_keep_what_is_theirs() -> None:
    static, dynamic = Worker(config(), calls=BOTH), Worker(config(dynamic=True), calls=BOTH)
    for worker in (dynamic, static):
        worker.load_model()
    assert hooked(table.REARRANGE)(static.state) is None
    assert hooked(table.REARRANGE)(dynamic.state)[0] == table.REARRANGE.name
    dynamic.state.policy.moves = True
    hooked(table.COMMIT)(dynamic.state.model_states["main"], None)
    counts = [session.rearrangements for worker in (static, dynamic) if (session := session_of(worker))]
    assert counts == [0, 1]


def test_hooks_go_with_the_last_engine() -> None:
    before = hooked(table.STEP)
    worker = Worker(config(), calls=BOTH)
    assert hooked(table.STEP) is not before
    Worker(config(active=False))
    assert hooked(table.STEP) is not before, "the first engine serves still"
    del worker
    gc.collect()
    Worker(config(active=False))
    assert hooked(table.STEP) is before


def test_a_draft_models_rearrangements_are_not_counted() -> None:
    worker = Worker(config(dynamic=True), calls=BOTH)
    worker.load_model()
    session, state = session_of(worker), worker.state
    assert session is not None
    assert isinstance(session.backend, VllmEplb)
    draft = model()
    state.model_states["draft"] = eplb_state(draft).model_states["main"]
    hooked(table.ADD_MODEL)(state, draft, SimpleNamespace())
    for moves in (True, False):
        state.policy.moves = moves
        for name in ("main", "draft"):
            hooked(table.COMMIT)(state.model_states[name], None)
            for layer in range(LAYERS):
                hooked(table.COMMIT_LAYER)(state.model_states[name], torch.arange(EXPERTS), layer)
    # One of all layers, and one that ended with the last; a plan that moves nothing is none.
    assert session.rearrangements == 2


def test_a_draft_model_that_comes_first_keeps_its_rule_and_the_main_model_gets_its_own() -> None:
    worker = Worker(config(dynamic=True), calls=(table.INITIALIZE_MODEL,))
    worker.load_model = lambda: None  # type: ignore[method-assign] # the model is added below
    session = session_of(worker)
    assert session is not None
    backend = session.backend
    state = eplb_state(model())
    drafts = state.model_states.pop("main")
    rules = {}
    with session.loading():
        hooked(table.INITIALIZE_MODEL)(vllm_config=worker.config, model_config=worker.config.model_config)
        for name, splits in (("draft", False), ("main", True)):
            made = model()
            made.moe_layers = [
                SimpleNamespace(moe_config=SimpleNamespace(is_sequence_parallel=splits))
            ] * LAYERS
            state.model_states[name] = drafts if name == "draft" else eplb_state(made).model_states["main"]
            model_config = worker.config.model_config if name == "main" else SimpleNamespace()
            hooked(table.ADD_MODEL)(state, made, model_config)
    for name, model_state in state.model_states.items():
        rules[name] = backend._rules[id(model_state)]
    # The ranks of a group see the same tokens of the draft model, and different ones of the main model.
    assert (rules["draft"].ranks_must_agree, rules["main"].ranks_must_agree) == (True, False)
    assert session.ranks.splits_tokens
    assert backend.main_state is state.model_states["main"]


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count what makes the host wait for a device: reading a tensor's value."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_recording_a_step_does_not_wait_for_the_device(tmp_path: Any) -> None:  # noqa: ANN401
    worker = Worker(config(record_path=str(tmp_path / "load.npz")), calls=BOTH)
    worker.load_model()
    assert bool(torch.ones(1))
    with HostReads() as reads:
        assert bool(torch.ones(1))
        for is_dummy in (False, True):
            step(worker, is_dummy=is_dummy)
    assert reads.count == 1  # the one above
    # The dummy step had no token, so it is none.
    assert report(worker)["recorded_steps"] == 1
    session = session_of(worker)
    assert session is not None
    session.stop()
    assert read_load(tmp_path / "load.npz").counts.tolist() == [[[1] * EXPERTS] * LAYERS]


def test_a_placement_that_cannot_be_read_is_kept_until_ranks_can_be_told(tmp_path: Any) -> None:  # noqa: ANN401
    made = config(expert_map_path=str(tmp_path / "none.json"))
    session = Session(made, Activation(Settings(expert_map_path=str(tmp_path / "none.json")), ""), _ranks())
    assert session.source is None
    with pytest.raises(ExpertMapsError, match=r"none\.json"):
        session.require_same_source()


def _ranks() -> SimpleNamespace:
    return SimpleNamespace(ep_size=1, cpu_group=None)
