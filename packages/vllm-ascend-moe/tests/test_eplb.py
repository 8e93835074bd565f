# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expert_maps import (
    ExpertMapsError,
    FormatError,
    LayoutError,
    Placement,
    PlacementError,
    generate_placement,
    plan,
    write_placement,
)
from vllm_ascend_moe.eplb import EplbConfigError, EplbMaps, init_eplb_config

if TYPE_CHECKING:
    from pathlib import Path


EXAMPLE = """{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, "device_list": [
  {"device_id": 0, "device_expert": [7, 2, 0, 3, 5]}, {"device_id": 1, "device_expert": [6, 1, 4, 7, 2]}]}]}
"""


def config(**attributes: object) -> SimpleNamespace:
    return SimpleNamespace(**attributes)


def moe(num_experts: int = 256, ep_size: int = 16, ep_rank: int = 15, **more: object) -> SimpleNamespace:
    return SimpleNamespace(num_experts=num_experts, ep_size=ep_size, ep_rank=ep_rank, **more)


def as_list(tensor: torch.Tensor | None) -> list[Any]:
    assert tensor is not None
    assert tensor.dtype == torch.int32
    assert tensor.device.type == "cpu"
    return tensor.tolist()


def assert_maps_of(maps: EplbMaps, placement: Placement, layer: int, rank: int) -> None:
    assert as_list(maps.expert_map) == placement.expert_map(layer, rank).tolist()
    assert as_list(maps.global_expert_map) == placement.global_expert_map(layer).tolist()
    assert maps.num_redundant_experts == placement.num_redundant_experts


@pytest.fixture
def planned(tmp_path: Path) -> tuple[str, Placement]:
    """A map file of three layers with different placements: 16 experts, 4 redundant, 4 ranks."""
    load = np.random.default_rng(0).lognormal(size=(3, 16))
    placement = plan(load, num_physical_experts=20, ep_size=4).placement
    write_placement(placement, tmp_path / "map.json")
    return str(tmp_path / "map.json"), placement


def test_the_last_rank_indexes_experts_that_exist() -> None:
    maps = init_eplb_config(config(dynamic_eplb=True, num_redundant_experts=16), 0, moe())
    wanted = [16] + [-1] * 239 + list(range(16))
    assert as_list(maps.expert_map) == wanted
    assert as_list(maps.log2phy)[0] == 271
    assert maps.num_redundant_experts == 16


def test_without_expert_parallelism_there_are_no_maps(caplog: pytest.LogCaptureFixture) -> None:
    for settings_ in (config(), config(dynamic_eplb=True, num_redundant_experts=3), None):
        maps = init_eplb_config(settings_, 0, config(num_experts=8, ep_size=1))
        assert (maps.expert_map, maps.log2phy, maps.global_expert_map) == (None, None, None)
        assert maps.num_redundant_experts == 0
    # Everything absent takes its default, and the default is no expert parallelism.
    assert init_eplb_config(config(), 0, config()).expert_map is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("redundant", [0, 16, 5])
def test_eplb_off_is_linear_without_redundancy(redundant: int) -> None:
    maps = init_eplb_config(config(num_redundant_experts=redundant), 7, moe())
    assert_maps_of(maps, generate_placement("linear", num_experts=256, ep_size=16), 0, 15)
    assert maps.log2phy is None


@pytest.mark.parametrize("on", [{"dynamic_eplb": True}, {"expert_map_record_path": "record.json"}])
def test_eplb_on_is_ring_with_the_configured_redundancy(on: dict[str, object]) -> None:
    for redundant in (0, 16, 32):
        maps = init_eplb_config(config(num_redundant_experts=redundant, **on), 3, moe(ep_rank=2))
        ring = generate_placement("ring", num_experts=256, ep_size=16, num_redundant_experts=redundant)
        assert_maps_of(maps, ring, 0, 2)
        assert as_list(maps.log2phy) == ring.log2phy(0, 2).tolist()


def test_experts_that_do_not_divide_are_split_as_vllm_does() -> None:
    for settings_ in (config(), config(dynamic_eplb=True)):
        maps = init_eplb_config(settings_, 0, moe(num_experts=10, ep_size=4, ep_rank=1))
        assert as_list(maps.expert_map) == [-1, -1, -1, 0, 1, 2, -1, -1, -1, -1]
    assert as_list(maps.log2phy) == list(range(10))


def test_redundancy_that_does_not_divide_names_the_nearest() -> None:
    with pytest.raises(LayoutError, match="nearest that work: 0 and 16"):
        init_eplb_config(config(dynamic_eplb=True, num_redundant_experts=5), 0, moe())


def test_a_map_file_gives_each_layer_its_own_placement(planned: tuple[str, Placement]) -> None:
    path, placement = planned
    for layer in range(3):
        for rank in range(4):
            for redundant in (0, None, 4):
                settings_ = config(expert_map_path=path, num_redundant_experts=redundant)
                maps = init_eplb_config(settings_, layer, moe(16, 4, rank))
                assert_maps_of(maps, placement, layer, rank)
                assert as_list(maps.log2phy) == placement.log2phy(layer, rank).tolist()


def test_the_example_file_gives_the_maps_worked_out_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(EXAMPLE)
    maps = init_eplb_config(config(expert_map_path=path), 0, moe(8, 2, 1))
    assert as_list(maps.expert_map) == [-1, 1, 4, -1, 2, -1, 0, 3]
    assert as_list(maps.log2phy) == [2, 6, 9, 3, 7, 4, 5, 8]
    assert maps.num_redundant_experts == 2


def test_a_bare_file_name_is_looked_for_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match="no such file"):
        init_eplb_config(config(expert_map_path="map.json"), 0, moe(8, 2, 1))
    (tmp_path / "map.json").write_text(EXAMPLE)
    assert init_eplb_config(config(expert_map_path="map.json"), 0, moe(8, 2, 1)).num_redundant_experts == 2


def test_the_draft_layer_gets_the_default_placement_with_the_files_slots(
    planned: tuple[str, Placement],
) -> None:
    path, _ = planned
    maps = init_eplb_config(config(expert_map_path=path), 3, moe(16, 4, 1))
    ring = generate_placement("ring", num_experts=16, ep_size=4, num_redundant_experts=4)
    assert_maps_of(maps, ring, 0, 1)
    assert as_list(maps.log2phy) == ring.log2phy(0, 1).tolist()
    with pytest.raises(EplbConfigError, match="layer_id is 4; expected at most 3"):
        init_eplb_config(config(expert_map_path=path), 4, moe(16, 4, 1))


@pytest.mark.parametrize(
    ("settings_", "moe_config", "message"),
    [
        ({"num_redundant_experts": 8}, moe(16, 4, 0), "num_redundant_experts is 8, but .* has 4"),
        ({}, moe(16, 2, 0), "is a map for 4 ranks; expected 2"),
        ({}, moe(15, 4, 0), "is a map for 16 experts; expected 15"),
    ],
)
def test_a_file_that_contradicts_the_settings_is_an_error(
    planned: tuple[str, Placement], settings_: dict[str, object], moe_config: object, message: str
) -> None:
    with pytest.raises(EplbConfigError, match=message):
        init_eplb_config(config(expert_map_path=planned[0], **settings_), 0, moe_config)


def test_a_file_without_the_models_last_experts_lists_them(planned: tuple[str, Placement]) -> None:
    with pytest.raises(PlacementError, match=r"map\.json: (?s:.*)expert 16 is missing"):
        init_eplb_config(config(expert_map_path=planned[0]), 0, moe(17, 4, 0))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text("{")
    with pytest.raises(FormatError, match=r"map\.json: not valid JSON"):
        init_eplb_config(config(expert_map_path=str(path)), 0, moe(8, 2, 0))
    document = json.loads(EXAMPLE)
    document["layer_list"][0]["device_list"][0]["device_expert"] = [7, 2, 0, 3, 3]
    path.write_text(json.dumps(document))
    with pytest.raises(PlacementError, match=r"map.json: (?s:.*)expert 3 stands twice") as error:
        init_eplb_config(config(expert_map_path=str(path)), 0, moe(8, 2, 0))
    assert {violation.kind for violation in error.value.violations} == {"missing", "duplicate"}


def test_maps_of_other_systems_are_converted_first(tmp_path: Path) -> None:
    # Their rows may be all layers, their slots may have lost their order; what serves guesses neither.
    np.save(tmp_path / "omni.npy", np.array([[[1, 1, 0, 0]], [[0, 0, 1, 1]]]))
    (tmp_path / "sglang.json").write_text(json.dumps({"physical_to_logical_map": [[0, 1, 2, 3]]}))
    for name, form in (("omni.npy", "the form omni"), ("sglang.json", "another system")):
        with pytest.raises(
            FormatError, match=f"{form}.*expert-maps convert .*{name} map.json --to expert-maps"
        ):
            init_eplb_config(config(expert_map_path=str(tmp_path / name)), 0, moe(4, 2, 0))
    write_placement(Placement([[0, 1, 2, 3]], 2), tmp_path / "map.json")
    assert (
        init_eplb_config(config(expert_map_path=str(tmp_path / "map.json")), 0, moe(4, 2, 0)).expert_map
        is not None
    )


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    for redundant in (0, 4, 8):
        write_placement(
            generate_placement("ring", num_experts=8, ep_size=4, num_redundant_experts=redundant), path
        )
        maps = init_eplb_config(config(expert_map_path=path), 0, moe(8, 4, 0))
        assert maps.num_redundant_experts == redundant


def test_tensor_parallelism_rotates_the_replicas() -> None:
    ring = generate_placement("ring", num_experts=256, ep_size=16, num_redundant_experts=16)
    settings_ = config(dynamic_eplb=True, num_redundant_experts=16)
    for rank in range(16):
        for tp_rank in (None, 0, 3):
            extra = {} if tp_rank is None else {"tp_rank": tp_rank}
            maps = init_eplb_config(settings_, 0, moe(ep_rank=rank, tp_size=4, **extra))
            assert as_list(maps.log2phy) == ring.log2phy(0, rank, tp_size=4, tp_rank=tp_rank).tolist()


@pytest.mark.parametrize(
    ("settings_", "layer", "moe_config", "message"),
    [
        (config(dynamic_eplb="yes"), 0, moe(), "dynamic_eplb is 'yes'; expected true or false"),
        (config(num_redundant_experts=-1), 0, moe(), "num_redundant_experts is -1"),
        (config(num_redundant_experts="2"), 0, moe(), "num_redundant_experts is '2'"),
        (config(expert_map_path=3), 0, moe(), "expert_map_path is 3; expected a path"),
        (config(), -1, moe(), "layer_id is -1"),
        (config(), "0", moe(), "layer_id is '0'"),
        (config(), 0, moe(ep_rank=16), "ep_rank is 16; expected one of 0 … 15"),
        (config(), 0, moe(ep_rank=-1), "ep_rank is -1"),
        (config(), 0, moe(ep_size=0), "ep_size is 0"),
        (config(), 0, moe(num_experts=0), "num_experts is 0"),
        (config(), 0, config(ep_size=2), "num_experts is missing"),
        (config(), 0, moe(tp_size=0), "tp_size is 0"),
        (config(), 0, moe(tp_size=2, tp_rank=2), "tp_rank is 2"),
    ],
)
def test_wrong_settings_are_named(settings_: object, layer: int, moe_config: object, message: str) -> None:
    with pytest.raises(ExpertMapsError, match=message):
        init_eplb_config(settings_, layer, moe_config)


def test_mappings_do_as_well_and_an_empty_path_is_none() -> None:
    maps = init_eplb_config(
        {"dynamic_eplb": True, "num_redundant_experts": 16, "expert_map_path": ""},
        0,
        {"num_experts": 256, "ep_size": 16, "ep_rank": 15},
    )
    assert as_list(maps.expert_map)[0] == 16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 8), st.integers(1, 24), st.data())
def test_on_every_rank_each_expert_is_reachable(ep_size: int, num_experts: int, data: st.DataObject) -> None:
    slots = data.draw(st.integers(-(-num_experts // ep_size), num_experts))
    redundant = slots * ep_size - num_experts
    settings_ = config(dynamic_eplb=True, num_redundant_experts=redundant)
    per_rank = [init_eplb_config(settings_, 0, moe(num_experts, ep_size, rank)) for rank in range(ep_size)]
    for rank, maps in enumerate(per_rank):
        table = np.array(as_list(maps.global_expert_map))
        assert as_list(maps.expert_map) == table[rank].tolist()
        for expert, physical in enumerate(as_list(maps.log2phy)):
            owner, slot = divmod(physical, slots)
            assert table[owner, expert] == slot


def test_tensors_of_different_layers_share_no_memory() -> None:
    first, second = (init_eplb_config(config(dynamic_eplb=True), 0, moe()) for _ in range(2))
    assert first.expert_map is not None
    assert first.global_expert_map is not None
    first.expert_map.fill_(7)
    first.global_expert_map.fill_(7)
    assert as_list(second.expert_map)[0] == -1
    assert as_list(init_eplb_config(config(dynamic_eplb=True), 0, moe()).global_expert_map)[0][0] == 0


# Beside another loader


def test_copies_stand_as_the_loader_fills_slots() -> None:
    layouts: list[Literal["ring", "append"]] = ["ring", "append"]
    for layout in layouts:
        wanted = generate_placement(layout, num_experts=16, ep_size=4, num_redundant_experts=4)
        for rank in range(4):
            maps = init_eplb_config(
                config(dynamic_eplb=True, num_redundant_experts=4),
                0,
                moe(16, 4, rank),
                layout=layout,
            )
            assert_maps_of(maps, wanted, 0, rank)


def test_a_draft_layer_has_no_row_in_a_file_whatever_its_index(planned: tuple[str, Placement]) -> None:
    path, _ = planned
    append = generate_placement("append", num_experts=16, ep_size=4, num_redundant_experts=4)
    for layer in (0, 2, 3, 7):
        maps = init_eplb_config(
            config(expert_map_path=path), layer, moe(16, 4, 1), layout="append", is_draft=True
        )
        assert_maps_of(maps, append, 0, 1)
