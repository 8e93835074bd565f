# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from vllm_ascend_moe import releases
from vllm_ascend_moe.backends.ascend import options as module
from vllm_ascend_moe.backends.ascend.options import (
    ascend_options,
    check_options,
    forget_engine,
    given_options,
    join_given,
    switch_dynamic_on,
)
from vllm_ascend_moe.core.settings import Settings, SettingsError
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    from pathlib import Path


def release(version: str) -> releases.Release:
    found = releases.find(version)
    assert found is not None
    return found


RING, APPEND, OLDEST = release("0.23.0"), release("0.30.0rc2"), release("0.18.0")
EXECUTOR = "vllm_ascend.patch.platform.patch_multiproc_executor"


def options(
    settings: dict[str, Any],
    given: dict[str, Any] | None = None,
    of: releases.Release = RING,
    num_layers: int | None = 4,
) -> dict[str, Any]:
    asked = join_given(Settings(**settings), None if given is None else {"eplb_config": given})
    check_options(asked, of)
    return ascend_options(asked, given or {}, of, num_layers)


# What is written


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {}),
        ({"expert_map_path": "map.json"}, {"expert_map_path": "map.json"}),
        (
            {"dynamic": True, "num_redundant_experts": 16},
            {"dynamic_eplb": True, "num_redundant_experts": 16},
        ),
        ({"dynamic": True}, {"dynamic_eplb": True, "num_redundant_experts": 0}),
        ({"window_size": 50}, {"expert_heat_collection_interval": 50}),
        ({"load_collection_phase": "prefill"}, {"eplb_heat_collection_stage": "prefill"}),
        ({"load_collection_phase": "decode"}, {"eplb_heat_collection_stage": "decode"}),
        ({"layout": "linear"}, {}),
        ({"layout": "ring"}, {}),
        ({"layout": "append"}, {}),
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
                "step_interval": 12,
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
def test_options_have_vllm_ascends_names(settings: dict[str, Any], wanted: dict[str, Any]) -> None:
    for given in (None, {}, {"expert_map_path": None}):
        assert {
            name: value for name, value in options(settings, given).items() if value is not None
        } == wanted


def test_where_the_loader_fills_slots_a_maps_redundancy_is_said() -> None:
    # It makes the slots before the map is read, by this number.
    settings = {"expert_map_path": "map.json", "num_redundant_experts": 4, "dynamic": False}
    assert options(settings, of=APPEND) == {"expert_map_path": "map.json", "num_redundant_experts": 4}
    assert options({}, of=APPEND) == {}


@pytest.mark.parametrize(("of", "window"), [(OLDEST, 400), (RING, 600), (APPEND, 600)])
def test_a_cycle_counts_plans_and_moves_a_layer_a_step(of: releases.Release, window: int) -> None:
    written = options({"dynamic": True, "step_interval": window + 58 + 1}, of=of, num_layers=58)
    assert written["algorithm_execution_interval"] == 1
    assert "expert_heat_collection_interval" not in written
    message = (
        f"step_interval is {window + 58}; expected at least {window + 59}: .* {window} steps .* 58 to move"
    )
    with pytest.raises(EplbConfigError, match=message):
        options({"dynamic": True, "step_interval": window + 58}, of=of, num_layers=58)
    # The user's own window counts.
    written = options(
        {"step_interval": 30}, {"expert_heat_collection_interval": 10, "dynamic_eplb": True}, of
    )
    assert written["algorithm_execution_interval"] == 16


def test_an_interval_without_a_number_of_layers_is_refused() -> None:
    with pytest.raises(EplbConfigError, match="step_interval is 900, but how many MoE layers a stage"):
        options({"step_interval": 900}, num_layers=None)


# What the user gave to vllm-ascend itself


def test_the_users_own_options_are_read_as_if_given_here() -> None:
    given = {
        "expert_map_path": "map.json",
        "dynamic_eplb": True,
        "num_redundant_experts": 4,
        "expert_heat_collection_interval": 20,
        "eplb_heat_collection_stage": "decode",
        "eplb_policy_type": 2,
    }
    assert join_given(Settings(), {"eplb_config": given, "other": 1}) == Settings(
        expert_map_path="map.json",
        dynamic=True,
        num_redundant_experts=4,
        window_size=20,
        load_collection_phase="decode",
        # A type of vllm-ascend's asks for its planner.
        policy="vllm",
    )
    # The same twice is no contradiction, and what is the plugin's alone stays.
    assert join_given(Settings(step_interval=900, dynamic=True), {"eplb_config": given}) == Settings(
        expert_map_path="map.json",
        dynamic=True,
        num_redundant_experts=4,
        window_size=20,
        step_interval=900,
        load_collection_phase="decode",
        policy="vllm",
    )
    for nothing in (None, {}, {"eplb_config": None}, {"eplb_config": {"expert_map_path": ""}}):
        assert join_given(Settings(layout="ring"), nothing) == Settings(layout="ring")


def test_recording_is_dynamic_in_vllm_ascend() -> None:
    assert join_given(Settings(), {"eplb_config": {"expert_map_record_path": "new.json"}}).dynamic
    quiet = {"expert_map_record_path": "new.json", "dynamic_eplb": False}
    assert join_given(Settings(), {"eplb_config": quiet}).dynamic


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (
            {"expert_map_path": "a.json"},
            {"expert_map_path": "b.json"},
            r"^expert_map_path is 'a\.json' in expert_maps, but expert_map_path is 'b\.json' in eplb_config",
        ),
        (
            {"dynamic": False},
            {"dynamic_eplb": True},
            "^dynamic is False in expert_maps, but dynamic_eplb is True",
        ),
        (
            {"num_redundant_experts": 4},
            {"num_redundant_experts": 2},
            "^num_redundant_experts is 4 in expert_maps, but num_redundant_experts is 2",
        ),
        (
            {"window_size": 5},
            {"expert_heat_collection_interval": 6},
            "^window_size is 5 .*heat_collection_interval is 6",
        ),
        (
            {"load_collection_phase": "decode"},
            {"eplb_heat_collection_stage": "prefill"},
            "^load_collection_phase is 'decode' .*heat_collection_stage is 'prefill'",
        ),
        (
            {"step_interval": 50},
            {"algorithm_execution_interval": 5},
            "^step_interval is 50 .*algorithm_execution_interval is 5",
        ),
        (
            {"layout": "ring"},
            {"expert_map_path": "b.json"},
            "^layout is 'ring' .*expert_map_path is 'b.json'",
        ),
    ],
)
def test_two_words_of_one_thing_are_refused(
    settings: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(EplbConfigError, match=message):
        join_given(Settings(**settings), {"eplb_config": given})


def test_what_is_no_option_is_refused() -> None:
    with pytest.raises(
        EplbConfigError, match=r"eplb_config in the additional config is \[1\]; expected an object"
    ):
        given_options({"eplb_config": [1]})
    with pytest.raises(SettingsError, match="dynamic is 'yes'"):
        join_given(Settings(), {"eplb_config": {"dynamic_eplb": "yes"}})


def test_the_plugins_options_are_laid_over_the_users() -> None:
    theirs = {"expert_map_path": "map.json", "eplb_policy_type": 2, "algorithm_execution_interval": 7}
    found = options({"expert_map_path": "map.json", "window_size": 3}, theirs)
    assert found == {**theirs, "expert_heat_collection_interval": 3}
    # What the user gave is left as it was.
    assert "expert_heat_collection_interval" not in theirs


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "vllm", "max_layers": 4}, "^max_layers is 4, where vllm-ascend plans by its own policy"),
        ({"policy": "vllm", "min_gain": 0}, "^min_gain is 0.0, where vllm-ascend plans by its own policy"),
    ],
)
def test_options_without_a_counterpart_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EplbConfigError, match=message):
        options(settings)


@pytest.mark.parametrize("policy", [None, "balanced", "deepseek"])
def test_what_decides_a_plan_of_ours_is_taken_and_not_handed_on(policy: str | None) -> None:
    asked = {"dynamic": True, "policy": policy, "max_layers": 3, "min_gain": 0.1}
    assert options(asked) == options({"dynamic": True})


def test_a_policy_is_asked_for_in_one_place() -> None:
    theirs = {"eplb_config": {"eplb_policy_type": 2}}
    assert join_given(Settings(policy="vllm"), theirs).policy == "vllm"
    assert join_given(Settings(), {"eplb_config": {"eplb_policy_type": None}}).policy is None
    with pytest.raises(
        EplbConfigError, match="policy is 'balanced' in expert_maps, and eplb_policy_type is 2"
    ):
        join_given(Settings(policy="balanced"), theirs)


@pytest.mark.parametrize("of", [RING, APPEND], ids=str)
def test_any_layout_is_one_to_start_from(of: releases.Release) -> None:
    for redundant, names in ((4, ("ring", "append")), (0, ("linear", "round_robin", "ring", "append"))):
        asked = {"num_redundant_experts": redundant, "dynamic": True}
        for name in names:
            assert options({**asked, "layout": name}, of=of) == options(asked, of=of)


@pytest.mark.parametrize(
    "asked",
    [
        {"num_redundant_experts": 4, "dynamic": False},
        {"num_redundant_experts": 4, "layout": "append"},
        {"layout": "round_robin"},
    ],
)
@pytest.mark.parametrize("of", [RING, APPEND], ids=str)
def test_a_layout_that_stays_has_its_dynamic_eplb_with_nothing_to_move(
    asked: dict[str, Any], of: releases.Release
) -> None:
    redundant = asked.get("num_redundant_experts", 0)
    assert options(asked, of=of) == {"dynamic_eplb": True, "num_redundant_experts": redundant}


@pytest.mark.parametrize("asked", [{"record_path": "load.npz"}, {"log_balancedness": True}])
@pytest.mark.parametrize("of", [RING, APPEND], ids=str)
def test_load_is_counted_by_its_dynamic_eplb(asked: dict[str, Any], of: releases.Release) -> None:
    counts = {"dynamic_eplb": True, "num_redundant_experts": 0}
    assert options(asked, of=of) == counts
    assert options({**asked, "expert_map_path": "map.json"}, of=of) == {
        **counts,
        "expert_map_path": "map.json",
    }
    assert options({"log_balancedness": False, "log_balancedness_interval": 5}, of=of) == {}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("version", ["0.18.0", "0.22.1rc1"])
def test_an_option_that_came_later_is_refused_before(phase: str, version: str) -> None:
    message = f"load_collection_phase is {phase} with vllm-ascend {version}; expected a later one, or 'all'"
    with pytest.raises(EplbConfigError, match=message):
        options({"load_collection_phase": phase}, of=release(version))
    assert options({"load_collection_phase": "all"}, of=release(version)) == {}


# Switching vllm-ascend's dynamic EPLB on, for one engine


@pytest.fixture(autouse=True)
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a vllm-ascend in place whose executor remembers the variable it was imported with; a clean environment."""
    for name in ("DYNAMIC_EPLB", "EXPERT_MAP_RECORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(module, "_switched_on", [])
    path = tmp_path.joinpath(*EXECUTOR.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True)
    path.write_text('import os\n\nSEEN = os.environ.get("DYNAMIC_EPLB")\n', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [found for found in sys.modules if found.split(".")[0] == "vllm_ascend"]:
        monkeypatch.delitem(sys.modules, name)
    # What is imported here is gone again afterwards.
    monkeypatch.setattr(sys, "modules", sys.modules.copy())


def test_workers_may_have_children_once_the_variable_is_set() -> None:
    # vllm-ascend looks at the variable where it is imported, which was before the plugin knew.
    switch_dynamic_on()
    assert sys.modules[EXECUTOR].SEEN == "true"
    assert os.environ["DYNAMIC_EPLB"] == "true"


def test_the_variable_is_not_left_to_a_later_engine() -> None:
    for _ in range(2):
        switch_dynamic_on()
        assert os.environ["DYNAMIC_EPLB"] == "true"
        forget_engine()
        assert "DYNAMIC_EPLB" not in os.environ


@pytest.mark.parametrize("name", ["DYNAMIC_EPLB", "EXPERT_MAP_RECORD"])
def test_the_users_own_word_is_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    switch_dynamic_on()
    assert EXECUTOR in sys.modules
    assert dict(os.environ) == before
    forget_engine()
    assert dict(os.environ) == before


def test_a_later_engine_has_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Releases up to 0.22 keep the first engine's for every later one of the process.
    config = ModuleType("vllm_ascend.ascend_config")
    cleared: list[bool] = []
    vars(config)["clear_ascend_config"] = lambda: cleared.append(True)
    monkeypatch.setitem(sys.modules, "vllm_ascend.ascend_config", config)
    forget_engine()
    assert cleared == [True]
