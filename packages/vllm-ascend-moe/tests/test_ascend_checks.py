# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from expert_maps import Placement, generate_placement
from vllm_ascend_moe import releases
from vllm_ascend_moe.backends.ascend import checks as ascend_checks
from vllm_ascend_moe.backends.ascend.checks import World, can_gather, check_runner, check_served, chip
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.core.sources import PlacementSource
from vllm_ascend_moe.eplb import EplbConfigError

WORLD = World(size=4, top_k=2, uses_lora=False, is_quantised=False)
EXPERTS, RANKS, LAYERS = 16, 4, 3


def release(version: str) -> releases.Release:
    found = releases.find(version)
    assert found is not None
    return found


def source(layout: str = "linear", redundant: int = 0, ranks: int = RANKS) -> PlacementSource:
    placement = generate_placement(
        layout,
        num_experts=EXPERTS,
        ep_size=ranks,
        num_layers=LAYERS,
        num_redundant_experts=redundant,
    )
    return PlacementSource("map.json", placement, is_file=True, num_layers=LAYERS)


def swapped() -> PlacementSource:
    """Make a map that is linear but for two experts of its last layer."""
    rows = np.tile(np.arange(EXPERTS), (LAYERS, 1))
    rows[-1, [0, EXPERTS - 1]] = rows[-1, [EXPERTS - 1, 0]]
    return PlacementSource("map.json", Placement(rows, RANKS), is_file=True, num_layers=LAYERS)


def check(
    version: str,
    found: PlacementSource,
    given: dict[str, Any] | None = None,
    world: World = WORLD,
    *,
    dynamic: bool = False,
    policy: str | None = None,
) -> None:
    check_served(Settings(dynamic=dynamic, policy=policy), found, release(version), given or {}, world)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Say that vllm-ascend was built for a chip, as it says so itself."""
    name = str(getattr(request, "param", "A3"))
    utils = ModuleType("vllm_ascend.utils")
    found = SimpleNamespace(name="_310P" if name == "310P" else name)
    vars(utils)["get_ascend_device_type"] = lambda: found
    for module in ("vllm_ascend", "vllm_ascend.utils"):
        monkeypatch.setitem(sys.modules, module, utils if "." in module else ModuleType(module))
    return name


VERSIONS = [one.vllm_ascend for one in releases.RELEASES]


@pytest.mark.parametrize("on", ["A2", "A3", "A5"], indirect=True)
@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("version", VERSIONS)
def test_any_map_is_served_on_every_path_that_the_plugin_mends(version: str) -> None:
    world = replace(WORLD, is_quantised=True)
    for found in (swapped(), source("ring", 4), source("append", 4), source("linear")):
        for dynamic in (False, True):
            check(version, found, world=world, dynamic=dynamic)


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("version", VERSIONS)
def test_what_vllm_would_not_read_is_refused(version: str) -> None:
    world = replace(WORLD, filters_weights=True)
    with pytest.raises(
        EplbConfigError, match=r"^enable_ep_weight_filter is given, and map\.json is not linear"
    ):
        check(version, swapped(), world=world)
    check(version, source("linear"), world=world)


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("version", [one.vllm_ascend for one in releases.RELEASES])
@pytest.mark.parametrize("dynamic", [False, True])
def test_ranks_of_uneven_sizes_are_refused(version: str, dynamic: bool) -> None:
    placement = generate_placement("linear", num_experts=EXPERTS - 1, ep_size=RANKS, num_layers=LAYERS)
    found = PlacementSource("linear layout", placement, is_file=False, num_layers=LAYERS)
    message = (
        rf"^linear layout gives {RANKS} ranks \[3, 4\] slots; expected equally many with vllm-ascend {version}, "
        ".*wrong experts without an error: .*, or num_redundant_experts 1$"
    )
    with pytest.raises(EplbConfigError, match=message):
        check(version, found, dynamic=dynamic)


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_phase_that_ranks_tell_each_by_itself_is_refused(version: str) -> None:
    asked = Settings(dynamic=True, load_collection_phase="decode")
    several = replace(WORLD, data_parallel=2, is_quantised=True)
    if release(version).agrees_on_stage:
        check_served(asked, source("ring", 4), release(version), {}, several)
    else:
        with pytest.raises(
            EplbConfigError,
            match=r"^load_collection_phase is decode with data_parallel_size 2; expected 'all'",
        ):
            check_served(asked, source("ring", 4), release(version), {}, several)
    check_served(asked, source("ring", 4), release(version), {}, replace(several, data_parallel=1))


@pytest.mark.parametrize("on", ["A2", "A3"], indirect=True)
@pytest.mark.parametrize("version", VERSIONS)
def test_padding_that_would_be_counted_is_refused(version: str, on: str) -> None:
    asked = Settings(record_path="load.npz")
    several = replace(WORLD, data_parallel=2, is_quantised=True)
    if on == "A2":
        with pytest.raises(
            EplbConfigError, match=r"^record_path is load\.npz with data_parallel_size 2 on a A2; .*padding"
        ):
            check_served(asked, source(), release(version), {}, several)
    else:
        check_served(asked, source(), release(version), {}, several)
    check_served(asked, source(), release(version), {}, replace(several, data_parallel=1))


# The path AllGather


@pytest.mark.parametrize("on", ["310P"], indirect=True)
@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_way_of_its_own_to_gather_serves_a_linear_map_only(version: str) -> None:
    world = replace(WORLD, is_quantised=True)
    message = rf"^map\.json .*on 4 ranks of 310P; expected the linear layout .*vllm-ascend {version} .*AllGather.*Serve on"
    for found in (source("append", 4), swapped(), source("ring", 4)):
        for dynamic in (False, True):
            with pytest.raises(EplbConfigError, match=message):
                check(version, found, dynamic=dynamic, world=world)
    check(version, source("linear"))
    check(version, source("linear"), dynamic=True)


@pytest.mark.parametrize("on", ["A2"], indirect=True)
@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("version", VERSIONS)
def test_copies_on_an_a2_that_exchanges_are_refused(version: str) -> None:
    world = replace(WORLD, size=16, is_quantised=True)
    message = (
        r"^map\.json has 16 redundant experts, on 16 ranks of A2; expected none: .*MC2.*Take a map without"
    )
    with pytest.raises(EplbConfigError, match=message):
        check(version, source("append", 16, ranks=16), world=world)
    check(version, source("round_robin", ranks=16), world=world)
    check(version, source("append", 8, ranks=8), world=replace(world, size=8))


@pytest.mark.parametrize("on", ["A2"], indirect=True)
@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("choice", ["static", "own_rank", "tensor_parallel", "local"])
def test_a_choice_by_rank_is_refused_where_all_ranks_have_all_tokens(choice: Any) -> None:  # noqa: ANN401 - a name
    message = rf"^replica_choice is {choice} on 4 ranks of A2; expected rank_offset or weighted: .*AllGather"
    with pytest.raises(EplbConfigError, match=message):
        check_served(Settings(replica_choice=choice), source("ring", 4), release("0.23.0"), {}, WORLD)
    # Without copies there is nothing to choose.
    check_served(Settings(replica_choice=choice), swapped(), release("0.23.0"), {}, WORLD)
    check_served(Settings(replica_choice="rank_offset"), source("ring", 4), release("0.23.0"), {}, WORLD)


@pytest.mark.parametrize("on", ["A2"], indirect=True)
@pytest.mark.usefixtures("on")
def test_adapters_where_ids_change_are_refused() -> None:
    world = replace(WORLD, uses_lora=True)
    message = r"^map\.json is not linear, on 4 ranks of A2; .*not tried with adapters.*Take vllm-ascend 0\.25\.1rc1 or later"
    with pytest.raises(EplbConfigError, match=message):
        check("0.23.0", swapped(), world=world)
    check("0.25.1rc1", swapped(), world=world)


@pytest.mark.parametrize(
    ("version", "name", "size", "top_k", "expected"),
    [
        ("0.18.0", "A2", 64, 8, True),
        ("0.30.0rc2", "A2", 64, 8, True),
        ("0.23.0", "310P", 2, 8, True),
        ("0.18.0", "A3", 2, 8, False),
        ("0.30.0rc2", "A3", 2, 8, False),
        # An A5: the oldest release never, later ones in worlds no larger than the top k.
        ("0.18.0", "A5", 2, 8, False),
        ("0.22.1rc1", "A5", 8, 8, True),
        ("0.22.1rc1", "A5", 9, 8, False),
        ("0.30.0rc2", "A5", 8, 8, True),
        ("0.30.0rc2", "A5", 16, None, True),
    ],
)
def test_which_worlds_may_take_it(
    version: str, name: str, size: int, top_k: int | None, expected: bool
) -> None:
    world = World(size, top_k, uses_lora=False, is_quantised=True)
    assert can_gather(release(version), name, world) is expected
    # From 0.26 on adapters are exchanged on every chip.
    lora = replace(world, uses_lora=True)
    assert can_gather(release(version), name, lora) is (expected and version != "0.30.0rc2")


def test_a_world_is_read_from_the_arguments_and_the_model() -> None:
    arguments = SimpleNamespace(
        tensor_parallel_size=2, data_parallel_size=3, pipeline_parallel_size=5, enable_lora=True
    )
    text = SimpleNamespace(num_experts_per_tok=8)
    model = SimpleNamespace(hf_text_config=text, quantization="ascend")
    assert World.of(arguments, model) == World(30, 8, uses_lora=True, is_quantised=True, data_parallel=3)
    other = SimpleNamespace(hf_text_config=SimpleNamespace(top_k_experts=4), quantization=None)
    assert World.of(SimpleNamespace(), other) == World(1, 4, uses_lora=False, is_quantised=False)
    unknown = SimpleNamespace(hf_text_config=SimpleNamespace(), quantization=None)
    assert World.of(SimpleNamespace(), unknown).top_k is None


@pytest.mark.parametrize("on", ["A2", "A3", "A5", "310P"], indirect=True)
def test_the_chip_is_vllm_ascends_own_word(on: str) -> None:
    assert chip() == on


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("on", ["A7"], indirect=True)
def test_a_chip_that_is_not_known_is_refused() -> None:
    with pytest.raises(EplbConfigError, match="the chip is A7; expected one of A2, A3, A5, 310P"):
        check("0.23.0", swapped())
    # Where the path does not matter it is not asked.
    check("0.23.0", source("linear"))


def test_a_chip_that_cannot_be_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm_ascend", None)
    monkeypatch.delitem(sys.modules, "vllm_ascend.utils", raising=False)
    with pytest.raises(EplbConfigError, match="does not say which chip it was built for"):
        check("0.23.0", swapped())


# What fails or hangs


@pytest.mark.usefixtures("on")
def test_copies_that_the_profile_run_trips_over_are_refused() -> None:
    message = r"^map\.json has 4 redundant experts, on a model that is not quantised; expected none with vllm-ascend 0\.18\.0"
    with pytest.raises(EplbConfigError, match=message):
        check("0.18.0", source("ring", 4))
    check("0.18.0", source("ring", 4), world=replace(WORLD, is_quantised=True))
    check("0.18.0", swapped())
    check("0.22.1rc1", source("ring", 4))


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(
    ("version", "given", "refused"),
    [
        ("0.22.1rc1", {}, True),
        ("0.22.1rc1", {"eplb_policy_type": 2}, False),
        ("0.18.0", {"eplb_policy_type": 2}, True),
        ("0.23.0", {}, False),
        ("0.23.0", {"eplb_policy_type": 1}, True),
        ("0.30.0rc2", {}, False),
        ("0.30.0rc2", {"eplb_policy_type": 1}, True),
    ],
)
def test_a_policy_that_its_process_dies_of_is_refused(
    version: str, given: dict[str, Any], refused: bool
) -> None:
    layout = release(version).layout
    world = replace(WORLD, is_quantised=True)
    # At most one copy a rank, whatever the policy; and none is planned where nothing moves.
    check(version, source(layout, 4), given, world, dynamic=True, policy="vllm")
    check(version, source(layout, 8), given, world)
    # Ours is another's business.
    check(version, source(layout, 8), given, world, dynamic=True)
    if refused:
        message = r"^map\.json has 8 redundant experts on 4 ranks; expected at most 4 with eplb_policy_type"
        with pytest.raises(EplbConfigError, match=message) as raised:
            check(version, source(layout, 8), given, world, dynamic=True, policy="vllm")
        assert ("eplb_policy_type 2 in eplb_config" in str(raised.value)) is (version != "0.18.0")
    else:
        check(version, source(layout, 8), given, world, dynamic=True, policy="vllm")


def test_on_one_rank_there_are_no_maps_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascend_checks, "chip", lambda: pytest.fail("asked for the chip"))
    check("0.30.0rc2", source(ranks=1))


# vLLM's own EPLB


def test_vllms_own_eplb_is_refused_with_the_first_runner() -> None:
    with pytest.raises(
        EplbConfigError, match=r"^--enable-eplb is given beside vllm-ascend; .*set dynamic in expert_maps"
    ):
        check_runner(SimpleNamespace(enable_eplb=True))
    check_runner(SimpleNamespace(enable_eplb=False))


def test_a_worker_finds_the_same_world_as_the_front_end() -> None:
    model = SimpleNamespace(hf_text_config=SimpleNamespace(num_experts_per_tok=6), quantization=None)
    arguments = SimpleNamespace(tensor_parallel_size=2, pipeline_parallel_size=2, data_parallel_size=3)
    parallel = SimpleNamespace(world_size=4, data_parallel_size=3)
    for adapters in (None, object()):
        arguments.enable_lora = adapters is not None
        config = SimpleNamespace(parallel_config=parallel, model_config=model, lora_config=adapters)
        assert World.of_config(config) == World.of(arguments, model)
