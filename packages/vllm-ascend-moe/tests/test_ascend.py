# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from expert_maps import ExpertMapsError, LayoutError, Placement, generate_placement, plan, write_placement
from vllm_ascend_moe.backends.ascend.answers import around_init_eplb_config
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from pathlib import Path


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
        # log2phy alone is always wanted on the NPU.
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


@pytest.mark.parametrize(("release", "layout"), [("0.23.0", "ring"), ("0.26.0rc1", "append"), (None, "ring")])
def test_copies_stand_where_the_releases_loader_fills_slots(
    release: str | None, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapping, "vllm_ascend_version", lambda: release)
    wanted = generate_placement(layout, num_experts=16, ep_size=4, num_redundant_experts=4)
    options = eplb(num_redundant_experts=4, dynamic_eplb=True)
    for rank in range(4):
        # As from 0.24 on: by position.
        found = around_init_eplb_config(never, options, 0, moe(16, 4, rank), False, 0, tp_size=1)
        assert_maps_of(found, wanted, 0, rank)


def test_maps_are_made_on_the_device_that_layers_are_made_on(moved: list[torch.Tensor]) -> None:
    with torch.device("meta"):
        everywhere, expert_map, log2phy, _ = around_init_eplb_config(
            never, eplb(dynamic_eplb=True), 0, moe(16, 4, 1)
        )
        assert around_init_eplb_config(never, eplb(), 0, moe(16, 4, 1))[1].device.type == "meta"  # type: ignore[union-attr]
    assert everywhere is not None
    assert expert_map is not None
    assert (everywhere.device.type, expert_map.device.type) == ("meta", "meta")
    assert [log2phy] == moved


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
