# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError

from expert_maps import LAYOUT_NAMES, POLICY_NAMES, ExpertMapsError
from vllm_ascend_moe.core.replicas import REPLICA_CHOICES
from vllm_ascend_moe.core.settings import (
    ENV_ENABLED,
    ENV_PREFIX,
    VLLM_POLICY,
    Settings,
    SettingsError,
    read_flag,
    read_settings,
)

# Of every option: a value in the config, the same as an environment variable, and another one.
OPTIONS: dict[str, tuple[object, str, str]] = {
    "expert_map_path": ("map.json", "map.json", "other.json"),
    "layout": ("append", "append", "ring"),
    "num_redundant_experts": (16, "16", "8"),
    "dynamic": (True, "1", "false"),
    "policy": ("balanced", "balanced", "vllm"),
    "max_moves": (12, "12", "20"),
    "max_layers": (4, "4", "8"),
    "min_gain": (0.05, "0.05", "0.1"),
    "record_path": ("load.npz", "load.npz", "load.npy"),
    "replica_choice": ("static", "static", "tensor_parallel"),
    "replica_weights_path": ("weights.npz", "weights.npz", "other.json"),
    "load_collection_phase": ("decode", "decode", "prefill"),
    "step_interval": (300, "300", "200"),
    "window_size": (50, "50", "40"),
    "record_interval": (7, "7", "8"),
    "log_balancedness": (True, "true", "no"),
    "log_balancedness_interval": (9, "9", "10"),
    "record_at_start": (False, "0", "1"),
    "metrics": (False, "no", "yes"),
}


def variables(**options: str) -> dict[str, str]:
    return {ENV_PREFIX + option.upper(): value for option, value in options.items()}


def assert_refused(message: str, config: object = None, environ: dict[str, str] | None = None) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        read_settings(config, environ)


# Where options come from


def test_every_option_is_listed_here() -> None:
    assert set(OPTIONS) == set(Settings.model_fields)


def test_nothing_given_is_the_defaults() -> None:
    wanted = Settings()
    nothing: dict[str, str] = {}
    for config in (None, nothing):
        for environ in (None, nothing):
            assert read_settings(config, environ) == wanted
    defaults = {"load_collection_phase": "all", "record_interval": 100} | dict.fromkeys(
        ("record_at_start", "metrics"), True
    )
    assert wanted.model_dump() == {option: defaults.get(option) for option in OPTIONS}
    assert wanted.choice == "rank_offset"


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_read_from_both_and_the_config_wins(option: str) -> None:
    value, text, other = OPTIONS[option]
    wanted = Settings.model_validate({option: value})
    assert read_settings({option: value}) == wanted
    assert read_settings(None, variables(**{option: text})) == wanted
    assert read_settings({option: value}, variables(**{option: other})) == wanted
    assert read_settings({}, variables(**{option: other})) != wanted


FREE = (
    "num_redundant_experts",
    "dynamic",
    "step_interval",
    "record_interval",
    "load_collection_phase",
    "policy",
)


@examples(deadline=None, max_examples=60)
@given(st.fixed_dictionaries({option: st.sampled_from(["", "c", "e", "ce"]) for option in FREE}))
def test_each_option_takes_its_own_source(sources: dict[str, str]) -> None:
    config = {option: OPTIONS[option][0] for option, source in sources.items() if "c" in source}
    environ = {option: OPTIONS[option][2] for option, source in sources.items() if "e" in source}
    wanted = {**read_settings(None, variables(**environ)).model_dump(exclude_defaults=True), **config}
    assert read_settings(config, variables(**environ)) == Settings.model_validate(wanted)


def test_empty_variables_and_those_of_others_are_not_looked_at() -> None:
    environ = {
        ENV_ENABLED: "perhaps",
        f"{ENV_PREFIX}LAYOUT": "",
        f"{ENV_PREFIX}NO_SUCH_OPTION": "",
        "VLLM_PLUGINS": "x",
    }
    assert read_settings(None, environ) == Settings()


def test_the_environment_of_the_process_is_not_read_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}LAYOUT", "append")
    assert read_settings({}) == Settings()


def test_null_in_the_config_leaves_an_option_to_the_environment() -> None:
    assert read_settings({"layout": None}, variables(layout="append")).layout == "append"
    assert read_settings({"layout": None}) == Settings()


@pytest.mark.parametrize(
    ("config", "environ", "path", "layout"),
    [
        ({"expert_map_path": "map.json"}, {"layout": "ring"}, "map.json", None),
        ({"layout": "ring"}, {"expert_map_path": "map.json"}, None, "ring"),
        ({"layout": None}, {"expert_map_path": "map.json"}, "map.json", None),
        ({}, {"expert_map_path": "map.json"}, "map.json", None),
        ({"expert_map_path": ""}, {"layout": "ring"}, None, "ring"),
    ],
)
def test_a_map_file_or_a_layout_in_the_config_overrides_the_other_in_the_environment(
    config: dict[str, object], environ: dict[str, str], path: str | None, layout: str | None
) -> None:
    found = read_settings(config, variables(**environ))
    assert (found.expert_map_path, found.layout) == (path, layout)


@pytest.mark.parametrize("source", ["config", "environment"])
def test_a_map_file_and_a_layout_from_one_place_contradict_each_other(source: str) -> None:
    both = {"expert_map_path": "map.json", "layout": "ring"}
    wanted = "layout is 'ring' and expert_map_path is 'map.json'; expected one of them"
    if source == "config":
        assert_refused(wanted, both)
    else:
        assert_refused(wanted, None, variables(**both))


# Values


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("layout", "spiral", "'linear', 'round_robin', 'ring' or 'append'"),
        ("num_redundant_experts", -1, "greater than or equal to 0"),
        ("num_redundant_experts", 2**31, "less than or equal to 2147483647"),
        ("num_redundant_experts", "16", "a valid integer"),
        ("num_redundant_experts", 16.0, "a valid integer"),
        ("num_redundant_experts", True, "a valid integer"),
        ("dynamic", "yes", "a valid boolean"),
        ("dynamic", 1, "a valid boolean"),
        ("log_balancedness", "on", "a valid boolean"),
        (
            "replica_choice",
            "hottest",
            "'static', 'own_rank', 'tensor_parallel', 'local', 'rank_offset' or 'weighted'",
        ),
        ("load_collection_phase", "both", "'all', 'prefill' or 'decode'"),
        ("load_collection_phase", None, "'all', 'prefill' or 'decode'"),
        ("step_interval", 0, "greater than or equal to 1"),
        ("window_size", 0, "greater than or equal to 1"),
        ("record_interval", 0, "greater than or equal to 1"),
        ("record_interval", None, "a valid integer"),
        ("log_balancedness_interval", 0, "greater than or equal to 1"),
        ("policy", 3, "a valid string"),
        ("expert_map_path", 3, "a valid string"),
        ("record_path", ["load.npz"], "a valid string"),
        ("replica_weights_path", True, "a valid string"),
    ],
)
def test_a_wrong_value_in_the_config_is_named(option: str, value: object, expected: str) -> None:
    assert_refused(f"expert_maps.{option} is {value!r}; expected {expected}", {option: value})


def test_only_an_empty_string_is_an_unset_path() -> None:
    for option in ("expert_map_path", "record_path", "replica_weights_path"):
        values: tuple[object, ...] = (0, False, [])
        for value in values:
            assert_refused(f"expert_maps.{option} is {value!r}; expected a valid string", {option: value})


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("layout", "spiral", "'linear', 'round_robin', 'ring' or 'append'"),
        ("num_redundant_experts", "many", "a valid integer"),
        ("num_redundant_experts", "-1", "greater than or equal to 0"),
        ("num_redundant_experts", "1.5", "a valid integer"),
        ("dynamic", "perhaps", "a valid boolean"),
        ("load_collection_phase", "both", "'all', 'prefill' or 'decode'"),
        ("record_interval", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_variable_is_named(option: str, value: str, expected: str) -> None:
    shown = f"{ENV_PREFIX}{option.upper()} is {value!r}; expected {expected}"
    assert_refused(shown, None, variables(**{option: value}))
    # Overridden by the config, it does not count.
    read_settings({option: OPTIONS[option][0]}, variables(**{option: value}))


def test_limits_are_inside() -> None:
    for option, low in (("num_redundant_experts", 0), ("step_interval", 1), ("record_interval", 1)):
        for value in (low, 2**31 - 1):
            assert getattr(read_settings({option: value}), option) == value


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_every_layout_of_expert_maps_is_known(layout: str) -> None:
    assert read_settings({"layout": layout}).layout == layout


def test_every_replica_choice_is_known() -> None:
    for choice in REPLICA_CHOICES:
        weights = {"replica_weights_path": "w.npz"} if choice == "weighted" else {}
        assert read_settings({"replica_choice": choice, **weights}).choice == choice


@pytest.mark.parametrize("policy", [*POLICY_NAMES, VLLM_POLICY])
def test_every_policy_is_known(policy: str) -> None:
    assert read_settings({"policy": policy}).policy == policy


@pytest.mark.parametrize(
    "given", [{"config": {"policy": "deepsek"}}, {"environ": variables(policy="deepsek")}]
)
def test_an_unknown_policy_is_named_with_the_nearest(given: dict[str, Any]) -> None:
    listed = ", ".join([*POLICY_NAMES, "vllm"])
    assert_refused(f"policy is 'deepsek'; expected one of {listed}. Did you mean 'deepseek'?", **given)


def test_paths_may_be_path_objects_and_empty_ones_are_unset() -> None:
    for option, name in (
        ("expert_map_path", "a/map.json"),
        ("record_path", "a/load.npy"),
        ("replica_weights_path", "w"),
    ):
        assert getattr(read_settings({option: Path(name)}), option) == name
        assert read_settings({option: ""}) == Settings()


@pytest.mark.parametrize("name", ["load", "load.json", "load.csv", "load.npz.txt", ".npz"])
def test_a_record_that_could_not_be_read_back_is_refused(name: str) -> None:
    message = f"record_path is {name!r}; expected a name that ends in .npz or .npy"
    assert_refused(message, {"record_path": name})
    assert_refused(message, None, variables(record_path=name))


# Unknown options


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("expert_map", "expert_map_path"),
        ("redundant_experts", "num_redundant_experts"),
        ("polices", "policy"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest(option: str, nearest: str) -> None:
    listed = ", ".join(OPTIONS)
    assert_refused(
        f"expert_maps.{option} is not an option; expected one of {listed}. Did you mean {nearest!r}?",
        {option: 1},
    )
    variable, listed = ENV_PREFIX + option.upper(), ", ".join(variables(**dict.fromkeys(OPTIONS, "")))
    assert_refused(
        f"{variable} is not an option; expected one of {listed}. Did you mean '{ENV_PREFIX}{nearest.upper()}'?",
        None,
        {variable: "1"},
    )


def test_an_option_unlike_all_others_has_no_nearest() -> None:
    with pytest.raises(
        SettingsError, match=r"^expert_maps\.zzz is not an option; expected one of [a-z_, ]+$"
    ):
        read_settings({"zzz": 1})


def test_what_is_no_option_is_shown_as_a_terminal_can_take_it() -> None:
    for options in ({"\x1b[2J": 1}, {"x" * 10**6: 1}, {"dynamic": "x" * 10**6}, {"dynamic": "\x1b"}):
        with pytest.raises(SettingsError) as told:
            read_settings(options)
        assert str(told.value).isprintable()
        assert len(str(told.value)) < 1000
    with pytest.raises(SettingsError) as told:
        read_settings({}, {f"{ENV_PREFIX}\x1b[2J": "1"})
    assert str(told.value).isprintable()


@pytest.mark.parametrize("config", [[], "on", 1, True, [("layout", "ring")]])
def test_what_is_no_object_is_refused(config: object) -> None:
    assert_refused(f"expert_maps in the additional config is {config!r}; expected an object", config)


# Options that go together, or do not


def test_weights_choose_weighted_by_themselves() -> None:
    assert read_settings({"replica_weights_path": "w.npz"}).choice == "weighted"
    assert read_settings({"replica_choice": "static"}).choice == "static"


@pytest.mark.parametrize("choice", [choice for choice in REPLICA_CHOICES if choice != "weighted"])
def test_weights_with_another_choice_are_refused(choice: str) -> None:
    assert_refused(
        f"replica_weights_path is given with the replica_choice {choice!r}; expected it with 'weighted'",
        {"replica_choice": choice, "replica_weights_path": "w.npz"},
    )


def test_weighted_without_weights_is_refused() -> None:
    message = (
        "replica_weights_path is missing with the replica_choice 'weighted'; expected it with 'weighted'"
    )
    assert_refused(message, {"replica_choice": "weighted"})
    assert_refused(message, None, variables(replica_choice="weighted"))


@pytest.mark.parametrize("in_config", ["replica_choice", "replica_weights_path"])
def test_what_goes_together_may_come_from_both_places(in_config: str) -> None:
    both = {"replica_choice": "weighted", "replica_weights_path": "w.npz"}
    config = {in_config: both.pop(in_config)}
    assert read_settings(config, variables(**both)).choice == "weighted"


def test_what_contradicts_is_refused_across_both_places() -> None:
    weights = variables(replica_weights_path="w.npz")
    assert_refused("replica_weights_path is given and dynamic is true", {"dynamic": True}, weights)
    assert_refused(
        "replica_weights_path is given with the replica_choice 'static'",
        {"replica_choice": "static"},
        weights,
    )
    # The config turns off what the environment asks for.
    assert read_settings({"dynamic": False}, {**weights, **variables(dynamic="1")}).dynamic is False


@pytest.mark.parametrize("dynamic", [None, False, True])
def test_weights_hold_for_one_placement(dynamic: bool | None) -> None:
    config = {"replica_weights_path": "w.npz", "dynamic": dynamic}
    if dynamic:
        assert_refused("replica_weights_path is given and dynamic is true; expected false", config)
    else:
        assert read_settings(config).dynamic is dynamic


# The class itself


def test_settings_are_frozen_and_go_through_json() -> None:
    found = read_settings({"layout": "ring", "num_redundant_experts": 4, "dynamic": True})
    with pytest.raises(ValidationError, match="frozen"):
        found.layout = "append"
    assert Settings.model_validate(json.loads(json.dumps(found.model_dump()))) == found
    with pytest.raises(ValidationError, match="no_such"):
        Settings.model_validate({"no_such": 1})


def test_errors_are_those_of_expert_maps() -> None:
    assert issubclass(SettingsError, ExpertMapsError)


# Flags


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, False),
        ("", False),
        *((text, True) for text in ("1", "true", "YES", " On ")),
        *((text, False) for text in ("0", "False", "no", "OFF ")),
    ],
)
def test_flags_are_read(value: str | None, wanted: bool) -> None:
    assert read_flag("SOME_FLAG", value) is wanted


@pytest.mark.parametrize("value", ["2", "enabled", " "])
def test_other_flags_are_named(value: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"SOME_FLAG is {value!r}; expected 1 or 0")):
        read_flag("SOME_FLAG", value)
