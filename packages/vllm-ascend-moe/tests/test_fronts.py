# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Platforms: a new one is a file and a row, and what vLLM's EPLB is asked for where that serves."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_vllm
import pytest

from expert_maps import Placement
from vllm_ascend_moe import backends, frontend
from vllm_ascend_moe.backends import worker as workers
from vllm_ascend_moe.backends.cpu_front import CpuFront
from vllm_ascend_moe.backends.eplb_front import EplbFront
from vllm_ascend_moe.backends.interface import Backend, Facts, Front
from vllm_ascend_moe.core.activation import Activation
from vllm_ascend_moe.core.session import session_of
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.core.sources import PlacementSource
from vllm_ascend_moe.doctor import diagnose
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllm_ascend_moe.hooks.table import Hook

EXPERTS = 8


@pytest.fixture(autouse=True)
def no_hooks_left() -> Iterator[None]:
    yield
    wrapping.restore()


# A platform that nobody knows yet: all that its file has to say


class TpuFront(Front):
    kind = "tpu"
    serves = "its own kernels"
    backend = "tpu.TpuBackend"

    @staticmethod
    def is_for(platform: Any) -> bool:  # noqa: ANN401 - vLLM's
        return bool(platform.device_type == "tpu")

    def check_versions(self) -> None:
        pass

    def hooks(self) -> tuple[Hook, ...]:
        return ()

    def facts(self) -> Facts:
        return Facts(notes=["it is warm"])

    def arguments(self, *_: object) -> dict[str, object]:
        return {}


class TpuBackend(Backend):
    is_placed = False

    def install(self) -> None:
        pass

    def make_model(self, make: Callable[[], Any], model_config: Any) -> Any:  # noqa: ANN401 - vLLM's
        del model_config
        return make()

    def finish_loading(self) -> None:
        pass

    def report(self, *, checksums: bool) -> dict[str, Any]:
        return {"checksums": checksums}


def test_a_new_platform_is_a_file_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm_ascend_moe.backends.tpu")
    vars(module).update(TpuFront=TpuFront, TpuBackend=TpuBackend)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backends, "FRONTS", (*backends.FRONTS, "tpu.TpuFront"))
    fake_vllm.install(monkeypatch, platform="tpu")
    assert isinstance(backends.front(), TpuFront)
    found = diagnose({"expert_maps": {}}, {})
    assert (found.device, found.notes) == ("tpu", ["it is warm"])
    assert found.state == "active: expert_maps is in the additional config; its own kernels"
    asked = Activation(Settings(), "a test", backend=TpuFront.backend)
    config = fake_vllm.config(asked, num_experts=EXPERTS, device="tpu", load_format="dummy")
    worker = SimpleNamespace(load_model=lambda: "loaded", shutdown=lambda: None)
    workers.around_worker_init(lambda *_: None, worker, config)
    session = session_of(worker)
    assert session is not None
    assert isinstance(session.backend, TpuBackend)


# Where vLLM's own EPLB serves


@dataclass
class EplbConfig:
    """vLLM's, as far as it is read and written."""

    num_redundant_experts: int = 0
    step_interval: int = 3000
    window_size: int = 1000
    use_async: bool = True
    communicator: str | None = None
    log_balancedness: bool = False
    log_balancedness_interval: int = 1


def ask(front: Front, settings: Settings, rows: list[list[int]], ep_size: int = 2) -> dict[str, Any]:
    placement = Placement(rows, ep_size, num_logical_experts=EXPERTS)
    source = PlacementSource("a map", placement, is_file=True, num_layers=len(rows))
    settings = settings.changed(num_redundant_experts=placement.num_redundant_experts)
    return front.arguments(settings, source, SimpleNamespace(eplb_config=EplbConfig()), None)


LINEAR = [list(range(EXPERTS))]
SWAPPED = [[7, 1, 2, 3, 4, 5, 6, 0]]


@pytest.mark.parametrize("front", [EplbFront, CpuFront])
@pytest.mark.parametrize(
    ("rows", "more", "on"),
    [
        (LINEAR, {}, False),
        (LINEAR, {"dynamic": True}, True),
        (LINEAR, {"record_path": "load.npy"}, True),
        (LINEAR, {"log_balancedness": True}, True),
        (SWAPPED, {}, True),
    ],
)
def test_eplb_is_switched_on_where_it_is_needed(
    front: type[Front], rows: list[list[int]], more: dict[str, Any], *, on: bool
) -> None:
    asked = front()
    changes = ask(asked, Settings(**more), rows)
    config = SimpleNamespace(parallel_config=SimpleNamespace(enable_eplb=changes["enable_eplb"]))
    asked.complete(config)
    assert config.parallel_config.enable_eplb is on
    # vLLM refuses it on a CPU as an argument.
    assert changes["enable_eplb"] is (on and front is EplbFront)
    assert asked.records_alone is (front is CpuFront)


def test_what_is_static_never_moves_and_the_cpu_waits_for_what_does() -> None:
    static = ask(EplbFront(), Settings(), SWAPPED)["eplb_config"]
    assert static == EplbConfig(0, 10**9, 1, use_async=False)
    settings = Settings(dynamic=True, step_interval=7, window_size=5)
    dynamic = ask(EplbFront(), settings, SWAPPED)["eplb_config"]
    assert dynamic == EplbConfig(0, 7, 5, use_async=True)
    front = CpuFront()
    assert ask(front, settings, SWAPPED)["eplb_config"] == EplbConfig()
    config = SimpleNamespace(parallel_config=SimpleNamespace())
    front.complete(config)
    assert config.parallel_config.eplb_config == EplbConfig(
        0, 7, 5, use_async=False, communicator="torch_nccl"
    )


def test_ranks_of_unequally_many_slots_are_refused() -> None:
    placement = Placement.from_rank_lists([[[0, 1, 2], [3, 4]]], num_logical_experts=5)
    for is_file, way in (
        (True, "plan the map so"),
        (False, "take a number of ranks that divides the experts, or num_redundant_experts 1"),
    ):
        source = PlacementSource("a map", placement, is_file=is_file)
        with pytest.raises(EplbConfigError) as error:
            source.require_even("to serve")
        assert str(error.value) == f"a map gives 2 ranks [2, 3] slots; expected equally many to serve: {way}"


def test_ranks_of_programs_of_their_own_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # As vLLM does: offline, each data-parallel rank is a program, and the environment says how many there are.
    monkeypatch.setenv("VLLM_DP_SIZE", "3")
    assert frontend._count_ranks(SimpleNamespace(tensor_parallel_size=2, data_parallel_size=1)) == 6
    assert frontend._count_ranks(SimpleNamespace(tensor_parallel_size=2, data_parallel_size=2)) == 4
    for wrong in ("0", "-1", "two", ""):
        monkeypatch.setenv("VLLM_DP_SIZE", wrong)
        with pytest.raises(EplbConfigError, match=rf"VLLM_DP_SIZE is '{wrong}'; expected a number of ranks"):
            frontend._count_ranks(SimpleNamespace(tensor_parallel_size=2))
    monkeypatch.delenv("VLLM_DP_SIZE")
    assert frontend._count_ranks(SimpleNamespace(tensor_parallel_size=2)) == 2
