# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A worker beside vllm-ascend: which functions are hooked, whichever module names them, and what each then does."""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_vllm
import pytest

from vllm_ascend_moe import releases
from vllm_ascend_moe.backends import worker as workers
from vllm_ascend_moe.backends.ascend.proof import Proof
from vllm_ascend_moe.backends.ascend_v1 import AscendV1
from vllm_ascend_moe.core.activation import Activation
from vllm_ascend_moe.core.agreement import DisagreementError
from vllm_ascend_moe.core.session import Session, session_of
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping
from vllm_ascend_moe.report import WorkerReport

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPERTS = 16
NETLOADER = "vllm_ascend.model_loader.netloader.netloader"


class Worker:
    def __init__(self) -> None:
        self.done: list[str] = []

    def load_model(self) -> None:
        self.done.append("loaded")

    def reload_weights(self) -> None:
        self.done.append("loaded anew")


@pytest.fixture(autouse=True)
def no_hooks_left() -> Iterator[None]:
    yield
    wrapping.restore()


def config(settings: Settings | None = None, digest: str | None = None) -> SimpleNamespace:
    """Return vLLM's configuration of two ranks, as vllm-ascend leaves it: with an EPLB that is not vLLM's switched on."""
    activation = Activation(settings or Settings(), "a test", backend="ascend_v1.AscendV1")
    return fake_vllm.config(
        activation, num_experts=EXPERTS, device="npu", load_format="auto", digest=digest, enable_eplb=True
    )


def install(monkeypatch: pytest.MonkeyPatch, release: str = "0.23.0") -> None:
    """Put a vLLM and a vllm-ascend in place: what the plugin uses beside that release, and no EPLB of vLLM's."""
    known = releases.find(release)
    assert known is not None
    fake_vllm.install(monkeypatch, table.beside(known), platform="ascend", version=known.vllm)
    monkeypatch.setattr(wrapping, "vllm_ascend_version", lambda: release)
    adaptor = table.Hook("vllm_ascend.eplb.adaptor.vllm_adaptor", "VllmEplbAdaptor", ())
    fake_vllm.replace(monkeypatch, adaptor, type("Adaptor", (), {"_registered_moe_layers": [1]}))
    fake_vllm.replace(monkeypatch, table.PP_GROUP, lambda: SimpleNamespace(world_size=1, rank_in_group=0))
    for module in known.layers:
        fake_vllm.replace(monkeypatch, table.Hook(module, "Layer", ()), type("Layer", (), {"moe_counter": 3}))
    # As `from … import initialize_model` binds it.
    made = sys.modules[table.INITIALIZE_MODEL_UTIL.module].initialize_model
    fake_vllm.replace(monkeypatch, table.INITIALIZE_MODEL, made)
    fake_vllm.replace(monkeypatch, table.Hook(NETLOADER, "initialize_model", ()), made)


def session(worker: Worker) -> Session:
    found = session_of(worker)
    assert found is not None
    return found


def backend(worker: Worker) -> AscendV1:
    found = session(worker).backend
    assert isinstance(found, AscendV1)
    return found


def start(made: SimpleNamespace) -> Worker:
    worker = Worker()
    workers.around_worker_init(lambda *_: None, worker, made)
    return worker


@pytest.mark.parametrize("release", [release.vllm_ascend for release in releases.RELEASES])
def test_it_starts_without_any_function_of_vllms_eplb(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, release)
    backend(start(config()))
    known = releases.find(release)
    assert known is not None
    for module in known.layers:
        assert hasattr(sys.modules[module].init_eplb_config, wrapping._MARK)


@pytest.mark.parametrize("hook", [table.MOVE_EXPERTS, table.EPLB_PROCESS, table.EPLB_MANAGER])
def test_a_vllm_ascend_of_which_a_function_is_missing_is_refused(
    hook: table.Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    owner: Any = sys.modules[hook.module]
    *path, name = hook.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    monkeypatch.delattr(owner, name)
    with pytest.raises(wrapping.UpstreamError, match=name):
        start(config())


@pytest.mark.parametrize(
    "module", [table.INITIALIZE_MODEL.module, table.INITIALIZE_MODEL_UTIL.module, NETLOADER]
)
def test_ranks_agree_whichever_loader_makes_the_model(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    made = config(digest="0" * 64)
    worker = start(made)
    with session(worker).loading(), pytest.raises(DisagreementError, match="give every node the same file"):
        sys.modules[module].initialize_model(vllm_config=made, model_config=made.model_config)


def test_layers_are_numbered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    start(config())
    known = releases.find("0.23.0")
    assert known is not None
    assert [sys.modules[module].Layer.moe_counter for module in known.layers] == [-1, -1]
    adaptor = sys.modules["vllm_ascend.eplb.adaptor.vllm_adaptor"].VllmEplbAdaptor
    assert adaptor._registered_moe_layers == []


def test_a_copy_of_the_main_models_configuration_is_the_main_models(monkeypatch: pytest.MonkeyPatch) -> None:
    # As vllm-ascend's netloader falls back to another loader.
    install(monkeypatch)
    made = config()
    found = start(made)
    asked: list[bool] = []
    monkeypatch.setattr(backend(found), "build", lambda _, *, draft: asked.append(draft))
    make = functools.partial(sys.modules[table.INITIALIZE_MODEL.module].initialize_model, vllm_config=made)
    with session(found).loading():
        make(model_config=made.model_config)
        make(model_config=SimpleNamespace(runner_type="generate"))
        make(model_config=SimpleNamespace(runner_type="draft"))
    assert asked == [False, False, True]


def test_all_of_loading_is_followed_by_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    worker = start(config())
    found = backend(worker)
    session(worker).has_agreed = True
    made = SimpleNamespace(layers=[SimpleNamespace(log2phy=None, expert_map=None)], num_experts=8, first=0)
    found._main = made  # type: ignore[assignment]

    def compare(proof: Proof, **_: object) -> None:
        proof.rows = [[[]]]
        worker.done.append("compared")

    monkeypatch.setattr(Proof, "compare_loaded", compare)
    worker.load_model()
    assert worker.done == ["loaded", "compared"]
    worker.reload_weights()
    # Where maps are served, vLLM would load in another order.
    found._main = SimpleNamespace(layers=[SimpleNamespace(log2phy=[0])])  # type: ignore[assignment]
    with pytest.raises(EplbConfigError, match="reload_weights was called while experts stand"):
        worker.reload_weights()


def test_before_loading_the_report_has_no_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    report = WorkerReport.expert_maps_report(start(config()))  # type: ignore[arg-type] # it is mixed into a worker
    assert report["active"]
    assert "digest" not in report


def test_hooks_of_an_engine_before_this_one_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    made = config(digest="0" * 64)
    start(made)
    wrapped = sys.modules[NETLOADER].initialize_model
    # What is loaded now is another engine's, which is inactive.
    assert wrapped(vllm_config=made, model_config=made.model_config)[0] == "initialize_model"
