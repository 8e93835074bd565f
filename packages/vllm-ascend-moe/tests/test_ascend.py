# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from expert_maps import ExpertMapsError, LayoutError, Placement, generate_placement, plan, write_placement
from vllm_ascend_moe import ascend, upstream
from vllm_ascend_moe.ascend import around_init_eplb_config, ascend_options
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.report import WorkerReport
from vllm_ascend_moe.settings import Settings
from vllm_ascend_moe.sources import PlacementSource

if TYPE_CHECKING:
    from pathlib import Path


# Options


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic EPLB sets a variable, which is to be as it was after each test."""
    monkeypatch.setenv("DYNAMIC_EPLB", "")
    monkeypatch.delenv("DYNAMIC_EPLB")


def arguments(additional_config: dict[str, Any] | None = None) -> SimpleNamespace:
    return SimpleNamespace(additional_config=additional_config)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {}),
        ({"expert_map_path": "map.json"}, {"expert_map_path": "map.json"}),
        (
            {"dynamic": True, "num_redundant_experts": 16},
            {"dynamic_eplb": True, "num_redundant_experts": 16},
        ),
        ({"window_size": 50}, {"expert_heat_collection_interval": 50}),
        ({"step_interval": 30}, {"algorithm_execution_interval": 30}),
        ({"load_collection_phase": "prefill"}, {"eplb_heat_collection_stage": "prefill"}),
        ({"load_collection_phase": "decode"}, {"eplb_heat_collection_stage": "decode"}),
        ({"layout": "linear"}, {}),
        ({"layout": "ring"}, {}),
        ({"dynamic": False}, {}),
        # As the front end leaves them: a file's redundancy is its own.
        (
            {"expert_map_path": "map.json", "num_redundant_experts": 4, "dynamic": False},
            {"expert_map_path": "map.json"},
        ),
        (
            {
                "expert_map_path": "map.json",
                "dynamic": True,
                "num_redundant_experts": 4,
                "window_size": 5,
                "step_interval": 3,
                "load_collection_phase": "decode",
            },
            {
                "expert_map_path": "map.json",
                "dynamic_eplb": True,
                "num_redundant_experts": 4,
                "expert_heat_collection_interval": 5,
                "algorithm_execution_interval": 3,
                "eplb_heat_collection_stage": "decode",
            },
        ),
    ],
)
@pytest.mark.parametrize("version", ["0.23.0", "0.23.0.post1"])
def test_options_have_vllm_ascends_names(
    settings: dict[str, Any], wanted: dict[str, Any], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "vllm_ascend_version", lambda: version)
    for given in (None, {}, {"eplb_config": None}, {"other": 1}):
        assert ascend_options(Settings(**settings), arguments(given)) == wanted


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("version", ["0.18.0", "0.22.1rc1", None])
def test_an_option_that_came_later_is_refused_before(
    phase: Any,  # noqa: ANN401 - a literal
    version: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream, "vllm_ascend_version", lambda: version)
    message = (
        f"load_collection_phase is {phase} with vllm-ascend {version}; expected vllm-ascend 0.23 or later"
    )
    with pytest.raises(EplbConfigError, match=message):
        ascend_options(Settings(load_collection_phase=phase), arguments())
    assert ascend_options(Settings(load_collection_phase="all"), arguments()) == {}


def test_the_variable_that_vllm_ascend_insists_on_is_set_with_dynamic_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for dynamic in (None, False):
        ascend_options(Settings(dynamic=dynamic), arguments())
        assert "DYNAMIC_EPLB" not in os.environ
    ascend_options(Settings(dynamic=True, num_redundant_experts=4), arguments())
    assert os.environ["DYNAMIC_EPLB"] == "true"
    # The user's own word is left.
    monkeypatch.setenv("DYNAMIC_EPLB", "1")
    ascend_options(Settings(dynamic=True, num_redundant_experts=4), arguments())
    assert os.environ["DYNAMIC_EPLB"] == "1"


def test_what_is_refused_changes_no_variable() -> None:
    with pytest.raises(EplbConfigError, match="record_path"):
        ascend_options(Settings(dynamic=True, record_path="load.npz"), arguments())
    assert "DYNAMIC_EPLB" not in os.environ


def test_the_plugins_options_are_laid_over_the_users() -> None:
    theirs = {"expert_map_path": "theirs.json", "eplb_policy_type": 2, "algorithm_execution_interval": 7}
    given = arguments({"eplb_config": theirs})
    found = ascend_options(Settings(expert_map_path="map.json"), given)
    assert found == {
        "expert_map_path": "map.json",
        "eplb_policy_type": 2,
        "algorithm_execution_interval": 7,
    }
    # What the user gave is left as it was.
    assert theirs["expert_map_path"] == "theirs.json"
    assert given.additional_config == {"eplb_config": theirs}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "append"}, "^layout is given; expected none of them beside vllm-ascend"),
        ({"layout": "round_robin"}, "^layout is given"),
        ({"policy": "deepseek"}, "^policy is given"),
        ({"policy": "vllm"}, "^policy is given"),
        ({"replica_choice": "static"}, "^replica_choice is given"),
        # Even what is the default elsewhere: here it is not what happens.
        ({"replica_choice": "rank_offset"}, "^replica_choice is given"),
        ({"replica_weights_path": "w.npy"}, "^replica_choice is given"),
        ({"log_balancedness": False}, "^log_balancedness is given"),
        ({"log_balancedness_interval": 5}, "^log_balancedness_interval is given"),
        ({"policy": "deepseek", "layout": "append"}, "^layout, policy are given"),
        ({"record_path": "load.npz"}, "record_path is load.npz; expected none .*expert_map_record_path"),
    ],
)
def test_options_without_a_counterpart_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EplbConfigError, match=message):
        ascend_options(Settings(**settings), arguments())


def test_copies_that_vllm_ascend_would_not_make_are_refused() -> None:
    # It has them with dynamic EPLB or from a map file only; the log would speak of copies that are not there.
    with pytest.raises(EplbConfigError, match="num_redundant_experts"):
        ascend_options(Settings(num_redundant_experts=4, dynamic=False), arguments())


# Maps


@pytest.fixture(autouse=True)
def moved(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Collect what is moved to the NPU, which stays on the CPU."""
    tensors: list[torch.Tensor] = []
    to = torch.Tensor.to

    def stay(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401 - torch's
        if args == ("npu",):
            tensors.append(tensor)
            return tensor
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", stay)
    return tensors


def never(*_: object) -> None:
    pytest.fail("vllm-ascend's own function was called")


def eplb(**options: object) -> SimpleNamespace:
    """Return vllm-ascend's settings, everything absent as it has it."""
    defaults = {
        "expert_map_path": None,
        "dynamic_eplb": False,
        "num_redundant_experts": 0,
        "expert_map_record_path": None,
    }
    return SimpleNamespace(**{**defaults, **options})


def moe(num_experts: int, ep_size: int, ep_rank: int) -> SimpleNamespace:
    return SimpleNamespace(num_experts=num_experts, ep_size=ep_size, ep_rank=ep_rank)


def assert_maps_of(
    found: tuple[Any, ...], placement: Placement, layer: int, rank: int, tp_size: int = 1
) -> None:
    """Compare with a placement: global map, expert map, log2phy, redundancy, in vllm-ascend's order."""
    everywhere, expert_map, log2phy, redundant = found
    assert everywhere.tolist() == placement.global_expert_map(layer).tolist()
    assert expert_map.tolist() == placement.expert_map(layer, rank).tolist()
    assert log2phy.tolist() == placement.log2phy(layer, rank, tp_size=tp_size).tolist()
    assert redundant == placement.num_redundant_experts
    assert {tensor.dtype for tensor in (everywhere, expert_map, log2phy)} == {torch.int32}


@pytest.mark.parametrize("on", [{"dynamic_eplb": True}, {"expert_map_record_path": "record.json"}])
def test_with_eplb_a_layer_gets_the_maps_of_the_ring(
    on: dict[str, object], moved: list[torch.Tensor]
) -> None:
    ring = generate_placement("ring", num_experts=16, ep_size=4, num_redundant_experts=4)
    for rank in range(4):
        found = around_init_eplb_config(never, eplb(num_redundant_experts=4, **on), 3, moe(16, 4, rank))
        assert_maps_of(found, ring, 0, rank)
        # log2phy alone is wanted on the device.
        assert len(moved) == rank + 1
        assert moved[-1] is found[2]


def test_with_a_file_each_layer_gets_its_own_maps(tmp_path: Path) -> None:
    load = np.random.default_rng(0).lognormal(size=(3, 16))
    placement = plan(load, num_physical_experts=20, ep_size=4).placement
    write_placement(placement, tmp_path / "map.json")
    for layer in range(3):
        for rank in range(4):
            settings = eplb(expert_map_path=str(tmp_path / "map.json"))
            found = around_init_eplb_config(never, settings, layer, moe(16, 4, rank))
            assert_maps_of(found, placement, layer, rank)


def test_what_the_layers_were_given_is_what_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ascend, "_served", {})
    assert ascend.served_placement() is None
    load = np.random.default_rng(0).lognormal(size=(3, 16))
    placement = plan(load, num_physical_experts=20, ep_size=4).placement
    write_placement(placement, tmp_path / "map.json")
    settings = eplb(expert_map_path=str(tmp_path / "map.json"))
    # The fourth is a draft layer's.
    for layer in range(4):
        around_init_eplb_config(never, settings, layer, moe(16, 4, 2))
    found = ascend.served_placement(3)
    assert found is not None
    assert found.digest == placement.digest

    serving = SimpleNamespace(
        kind="ascend",
        model=None,
        rearrangements=0,
        recorder=None,
        ranks=SimpleNamespace(ep_rank=2, ep_size=4),
        settings=Settings(expert_map_path=str(tmp_path / "map.json")),
        source=PlacementSource("map.json", placement, is_file=True),
    )
    monkeypatch.setattr("vllm_ascend_moe.serving.current", lambda: serving)
    report = WorkerReport().expert_maps_report()
    assert report["digest"] == placement.digest
    assert report["physical_to_logical"] == placement.physical_to_logical.tolist()
    assert (report["num_redundant_experts"], report["rearrangements"]) == (4, 0)
    # What vllm-ascend moves by itself is not known.
    serving.settings = Settings(dynamic=True, num_redundant_experts=4)
    assert "digest" not in WorkerReport().expert_maps_report()


def test_experts_that_vllm_ascend_moves_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascend, "_served", {})
    # As a user may ask of vllm-ascend beside the plugin's options.
    around_init_eplb_config(never, eplb(num_redundant_experts=4, dynamic_eplb=True), 0, moe(16, 4, 0))
    assert ascend.served_placement() is None


def test_without_eplb_the_linear_layout_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascend, "_served", {})
    for layer in range(2):
        around_init_eplb_config(never, eplb(), layer, moe(16, 4, 0))
    found = ascend.served_placement()
    linear = generate_placement("linear", num_experts=16, ep_size=4, num_layers=2)
    assert found is not None
    assert found.digest == linear.digest


def test_tensor_parallelism_rotates_the_copies() -> None:
    ring = generate_placement("ring", num_experts=16, ep_size=4, num_redundant_experts=16)
    settings = eplb(dynamic_eplb=True, num_redundant_experts=16)
    for rank in range(4):
        for tp_size in (None, 1, 2):
            found = around_init_eplb_config(never, settings, 0, moe(16, 4, rank), tp_size=tp_size)
            assert_maps_of(found, ring, 0, rank, tp_size or 1)
            # As vllm-ascend's layer may call it: all by place, or all by name.
            assert_maps_of(
                around_init_eplb_config(never, settings, 0, moe(16, 4, rank), False, 1, tp_size),
                ring,
                0,
                rank,
                tp_size or 1,
            )
            named = {
                "eplb_config": settings,
                "layer_id": 0,
                "moe_config": moe(16, 4, rank),
                "tp_size": tp_size,
            }
            assert_maps_of(around_init_eplb_config(never, **named), ring, 0, rank, tp_size or 1)  # type: ignore[arg-type]


def test_without_eplb_there_is_an_expert_map_alone(moved: list[torch.Tensor]) -> None:
    linear = generate_placement("linear", num_experts=10, ep_size=4)
    for rank in range(4):
        found = around_init_eplb_config(never, eplb(num_redundant_experts=4), 0, moe(10, 4, rank))
        everywhere, expert_map, log2phy, redundant = found
        assert (everywhere, log2phy, redundant) == (None, None, 0)
        assert expert_map is not None
        assert expert_map.tolist() == linear.expert_map(0, rank).tolist()
    assert not moved


def test_without_expert_parallelism_there_are_no_maps(moved: list[torch.Tensor]) -> None:
    for settings in (eplb(), eplb(dynamic_eplb=True, num_redundant_experts=4)):
        assert around_init_eplb_config(never, settings, 0, moe(16, 1, 0)) == (None, None, None, 0)
    assert not moved


@pytest.mark.parametrize(("by_place", "by_name"), [((True,), {}), ((), {"mix_placement": True})])
def test_shared_experts_in_the_placement_are_refused(
    by_place: tuple[bool, ...], by_name: dict[str, Any]
) -> None:
    with pytest.raises(
        EplbConfigError, match=r"mix_placement is true; expected false: .*routed experts only"
    ):
        around_init_eplb_config(never, eplb(), 0, moe(16, 4, 0), *by_place, **by_name)


def test_what_does_not_fit_is_refused_in_our_words(tmp_path: Path) -> None:
    write_placement(generate_placement("ring", num_experts=16, ep_size=4), tmp_path / "map.json")
    with pytest.raises(EplbConfigError, match=r"map\.json is a map for 16 experts; expected 8"):
        around_init_eplb_config(never, eplb(expert_map_path=str(tmp_path / "map.json")), 0, moe(8, 4, 0))
    with pytest.raises(LayoutError, match="nearest that work: 4 and 8"):
        around_init_eplb_config(never, eplb(dynamic_eplb=True, num_redundant_experts=5), 0, moe(16, 4, 0))
    with pytest.raises(ExpertMapsError, match="ep_rank is 4"):
        around_init_eplb_config(never, eplb(), 0, moe(16, 4, 4))
