# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the front end refuses, before anything is loaded, and what it switches on; vLLM makes the configuration."""

from __future__ import annotations

import copy
import json
import pickle
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny_models
from engine import ENVIRONMENT

from expert_maps import ExpertMapsError, generate_placement, split_replicas, write_placement, write_weights
from vllm_ascend_moe import backends
from vllm_ascend_moe.backends.eplb_front import EplbFront
from vllm_ascend_moe.core import activation
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS, LAYERS = 16, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen3_dense(tmp_path_factory.mktemp("qwen3_dense"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("VLLM_ASCEND_MOE_ENABLED", "VLLM_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


def configure(model: Path, expert_maps: object = None, **engine: Any) -> Any:  # noqa: ANN401 - vLLM's
    from vllm.engine.arg_utils import EngineArgs

    given = {} if expert_maps is None else {"additional_config": {"expert_maps": expert_maps}}
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 128, "enforce_eager": True}
    return EngineArgs(model=str(model), **{**options, **given, **engine}).create_engine_config()


def write_map(
    path: Path, experts: int = EXPERTS, ep_size: int = 2, layers: int = LAYERS, redundant: int = 4
) -> str:
    placement = generate_placement(
        "ring", num_experts=experts, ep_size=ep_size, num_redundant_experts=redundant, num_layers=layers
    )
    write_placement(placement, path)
    return str(path)


# What is switched on


def test_without_a_word_of_it_vllms_configuration_is_vllms(model: Path) -> None:
    config = configure(model, tensor_parallel_size=2, enable_expert_parallel=True)
    assert config.additional_config == {}
    assert not config.parallel_config.enable_eplb
    assert config.parallel_config.worker_extension_cls == ""


def test_an_empty_object_is_expert_parallelism(model: Path) -> None:
    parallel = configure(model, {}, tensor_parallel_size=2).parallel_config
    assert parallel.enable_expert_parallel
    assert not parallel.enable_eplb


def test_a_map_file_alone_switches_on_what_it_needs(model: Path, tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.json")
    config = configure(model, {"expert_map_path": path}, tensor_parallel_size=2)
    parallel = config.parallel_config
    assert parallel.enable_expert_parallel
    assert parallel.enable_eplb
    assert parallel.eplb_config.num_redundant_experts == 4
    assert not parallel.eplb_config.use_async
    found = activation.read_resolved(config, {})
    assert found.settings is not None
    assert found.settings.expert_map_path == path
    assert found.settings.dynamic is False
    assert found.digest


def test_the_environment_activates_and_the_config_wins(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ASCEND_MOE_ENABLED", "1")
    monkeypatch.setenv("VLLM_ASCEND_MOE_NUM_REDUNDANT_EXPERTS", "4")
    eplb = configure(model, tensor_parallel_size=2).parallel_config.eplb_config
    assert eplb.num_redundant_experts == 4
    eplb = configure(model, {"num_redundant_experts": 2}, tensor_parallel_size=2).parallel_config.eplb_config
    assert eplb.num_redundant_experts == 2


def test_vllms_own_switch_means_dynamic(model: Path) -> None:
    from vllm.config.parallel import EPLBConfig

    own = EPLBConfig(num_redundant_experts=2, step_interval=50, window_size=20, log_balancedness=True)
    config = configure(model, {}, tensor_parallel_size=2, enable_eplb=True, eplb_config=own)
    eplb = config.parallel_config.eplb_config
    assert (eplb.num_redundant_experts, eplb.step_interval, eplb.window_size) == (2, 50, 20)
    assert eplb.log_balancedness
    assert activation.read_resolved(config, {}).settings.dynamic  # type: ignore[union-attr]
    still = configure(model, {"dynamic": False}, tensor_parallel_size=2, enable_eplb=True, eplb_config=own)
    assert still.parallel_config.eplb_config.step_interval > 10**6


def test_arguments_are_left_as_the_user_gave_them(model: Path) -> None:
    from vllm.config.parallel import EPLBConfig
    from vllm.engine.arg_utils import EngineArgs

    given = {"expert_maps": {"num_redundant_experts": 4}}
    arguments = EngineArgs(model=str(model), tensor_parallel_size=2, additional_config=given)
    first = arguments.create_engine_config()
    assert not arguments.enable_eplb
    assert not arguments.enable_expert_parallel
    assert arguments.eplb_config == EPLBConfig()
    assert given == {"expert_maps": {"num_redundant_experts": 4}}
    assert arguments.create_engine_config().parallel_config.eplb_config == first.parallel_config.eplb_config


def test_a_dense_model_is_served_where_only_the_environment_asks(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ASCEND_MOE_ENABLED", "1")
    config = configure(dense)
    assert not config.parallel_config.enable_eplb
    found = activation.read_resolved(config)
    assert not found.is_active
    assert "has no experts" in found.reason


# What is refused


def refuse(match: str, model: Path, expert_maps: object, **engine: Any) -> None:  # noqa: ANN401 - vLLM's
    with pytest.raises(ExpertMapsError, match=match):
        configure(model, expert_maps, **{"tensor_parallel_size": 2, **engine})


def test_a_map_for_other_counts(model: Path, tmp_path: Path) -> None:
    few = write_map(tmp_path / "few.json", experts=8, redundant=0)
    refuse(r"few\.json is a map for 8 experts; expected 16", model, {"expert_map_path": few})
    many = write_map(tmp_path / "many.json", experts=32)
    refuse(r"many\.json is a map for 32 experts; expected 16", model, {"expert_map_path": many})
    ranks = write_map(tmp_path / "ranks.json", ep_size=4)
    refuse(r"ranks\.json is a map for 4 ranks; expected 2", model, {"expert_map_path": ranks})
    good = write_map(tmp_path / "good.json")
    refuse("is a map for 2 ranks; expected 1", model, {"expert_map_path": good}, tensor_parallel_size=1)
    refuse(
        "leave it out, the map alone decides", model, {"expert_map_path": good, "num_redundant_experts": 2}
    )


def test_a_file_that_is_no_map(model: Path, tmp_path: Path) -> None:
    whole = write_map(tmp_path / "map.json")
    truncated = tmp_path / "truncated.json"
    text = (tmp_path / "map.json").read_text(encoding="utf-8")
    truncated.write_text(text[: len(text) // 2], encoding="utf-8")
    refuse(r"truncated\.json: not valid JSON", model, {"expert_map_path": str(truncated)})
    refuse(r"absent\.json: no such file", model, {"expert_map_path": str(tmp_path / "absent.json")})
    document = json.loads(text)
    document["layer_list"][2]["device_list"][1]["device_expert"][0] = 99
    (tmp_path / "map.json").write_text(json.dumps(document), encoding="utf-8")
    refuse("no placement of the model's 16 experts: .*99", model, {"expert_map_path": whole})


def test_counts_that_do_not_work(model: Path) -> None:
    refuse("do not divide by ep_size 2; nearest that work: 2 and 4", model, {"num_redundant_experts": 3})
    refuse(
        "num_redundant_experts is 4 on one rank", model, {"num_redundant_experts": 4}, tensor_parallel_size=1
    )
    refuse("dynamic is True on one rank", model, {"dynamic": True}, tensor_parallel_size=1)
    refuse("layout 'linear' takes 0", model, {"layout": "linear", "num_redundant_experts": 2})


def test_experts_that_do_not_divide_are_served_linearly_but_not_moved(model: Path) -> None:
    assert configure(
        model, {}, tensor_parallel_size=1, data_parallel_size=3
    ).parallel_config.enable_expert_parallel
    refuse(
        "or num_redundant_experts 2$",
        model,
        {"dynamic": True},
        tensor_parallel_size=1,
        data_parallel_size=3,
    )


def test_options_that_do_not_exist_or_contradict(model: Path, tmp_path: Path) -> None:
    refuse("Did you mean 'expert_map_path'", model, {"expert_map_pth": "x"})
    refuse("expected an object", model, "ring")
    refuse(
        "expected rank_offset or weighted", model, {"replica_choice": "static", "num_redundant_experts": 4}
    )
    np.save(tmp_path / "weights.npy", np.ones((1, 3)))
    weights: dict[str, object] = {
        "replica_weights_path": str(tmp_path / "weights.npy"),
        "num_redundant_experts": 4,
    }
    refuse(r"a bare \.npy array, which does not say which map it is for", model, weights)
    placement = generate_placement(
        "append", num_experts=EXPERTS, ep_size=2, num_redundant_experts=4, num_layers=LAYERS
    )
    write_weights(split_replicas(placement, np.ones((LAYERS, EXPERTS))), tmp_path / "weights.npz")
    weights["replica_weights_path"] = str(tmp_path / "weights.npz")
    refuse(f"weights for the map {placement.digest[:12]}; expected", model, weights)  # the ring is served


def test_eplb_on_a_dense_model(dense: Path) -> None:
    refuse("is a dense model, with 0 experts", dense, {})
    refuse("Leave out expert_maps", dense, {"num_redundant_experts": 4})


def test_an_unsupported_vllm(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping, "vllm_version", lambda: "0.99.0")
    refuse(r"found vLLM 0\.99\.0; vllm-ascend-moe supports .*0\.30", model, {})
    # A vLLM that the plugin does not know serves all the same without it.
    assert configure(model).additional_config == {}


def test_every_hook_fits_this_vllm() -> None:
    hooks = (*table.WATCHED, table.STOP_TIMEOUT, *table.EPLB, *table.CPU)
    assert list(wrapping.problems(hooks)) == []


def test_a_function_that_has_changed_is_named() -> None:
    changed = table.Hook(table.COMMIT.module, table.COMMIT.name, ("model_state", "rank"))
    with pytest.raises(wrapping.UpstreamError, match=r"_commit_eplb_maps has the parameters .*; expected"):
        wrapping.check_hooks([table.STEP, changed])


def test_what_contradicts_vllms_own_switch(model: Path, tmp_path: Path) -> None:
    placement = generate_placement("linear", num_experts=EXPERTS, ep_size=2, num_layers=LAYERS)
    write_weights(split_replicas(placement, np.ones((LAYERS, EXPERTS))), tmp_path / "weights.npz")
    weights = {"replica_weights_path": str(tmp_path / "weights.npz")}
    refuse("weights hold for one placement", model, weights, enable_eplb=True)
    refuse("enable_elastic_ep is true", model, {}, enable_elastic_ep=True)


def test_on_a_gpu_vllm_decides_for_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "front", EplbFront)
    refuse("load_collection_phase is prefill; expected 'all'", model, {"load_collection_phase": "prefill"})
    # It is asked for EPLB before it makes its configuration; on this machine it refuses that.
    with pytest.raises(ValueError, match="only supported on"):
        configure(model, {"num_redundant_experts": 4}, tensor_parallel_size=2)


def test_other_processes_believe_the_front_end_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(model, {"num_redundant_experts": 4}, tensor_parallel_size=2)
    # As it is passed on: pickled to another process, copied to each data-parallel engine.
    passed = pickle.loads(pickle.dumps(copy.deepcopy(config)))  # noqa: S301 - our own bytes
    monkeypatch.setenv("VLLM_ASCEND_MOE_NUM_REDUNDANT_EXPERTS", "2")
    found = activation.read_resolved(passed)
    assert found.settings is not None
    assert found.settings.num_redundant_experts == 4
    monkeypatch.setenv("VLLM_ASCEND_MOE_ENABLED", "1")
    plain = SimpleNamespace(additional_config={}, parallel_config=SimpleNamespace(worker_extension_cls=""))
    assert "has no effect here" in activation.read_resolved(plain).reason
    plain.additional_config = {"expert_maps": {}}
    with pytest.raises(ExpertMapsError, match="without the plugin"):
        activation.read_resolved(plain)


def test_a_map_does_not_make_vllm_compile_the_model_anew(model: Path, tmp_path: Path) -> None:
    one, other = (write_map(tmp_path / name) for name in ("one.json", "other.json"))
    hashes = {
        configure(model, {"expert_map_path": path}, tensor_parallel_size=2).compute_hash()
        for path in (one, other)
    }
    assert len(hashes) == 1


def test_an_engine_after_an_active_one_finds_vllm_as_it_was() -> None:
    owner, name, real = wrapping._find(table.COMMIT)
    wrapping.wrap(table.COMMIT, lambda original, *args: original(*args))
    wrapping.wrap(table.COMMIT, lambda original, *args: original(*args))
    assert getattr(owner, name) is not real
    wrapping.restore()
    assert getattr(owner, name) is wrapping.original(table.COMMIT) is getattr(real, wrapping._MARK, real)
