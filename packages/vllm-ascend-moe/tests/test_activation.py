# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import logging
import pickle
import sys
from types import SimpleNamespace
from typing import Any

import fake_vllm
import pytest

import vllm_ascend_moe
from vllm_ascend_moe.core.activation import (
    REPORT,
    Activation,
    leave_resolved,
    log_active,
    log_inactive,
    read_activation,
    read_resolved,
    versions,
    vllm_version,
)
from vllm_ascend_moe.core.settings import ENV_ENABLED, ENV_PREFIX, Settings, SettingsError

LAYOUT, CHOICE = f"{ENV_PREFIX}LAYOUT", f"{ENV_PREFIX}REPLICA_CHOICE"


# Active or not


@pytest.mark.parametrize("config", [None, {}, {"other": 1}, "expert_maps", ["expert_maps"]])
@pytest.mark.parametrize("flag", [None, "", "0", "false"])
def test_it_is_inactive_unless_asked_for(config: object, flag: str | None) -> None:
    found = read_activation(config, {} if flag is None else {ENV_ENABLED: flag})
    assert not found.is_active
    assert found == Activation(
        None, f"expert_maps is not in the additional config and {ENV_ENABLED} is not 1", None
    )


def test_an_object_in_the_config_activates_it() -> None:
    configs: tuple[dict[str, object], ...] = ({"expert_maps": {}}, {"expert_maps": None, "other": 1})
    for config in configs:
        found = read_activation(config, {})
        assert found == Activation(Settings(), "expert_maps is in the additional config")
        assert found.is_active
    # A flag that says no is for those who say nothing.
    assert read_activation({"expert_maps": {}}, {ENV_ENABLED: "0"}).is_active


def test_the_environment_activates_it() -> None:
    found = read_activation(None, {ENV_ENABLED: "1", LAYOUT: "ring"})
    assert found == Activation(Settings(layout="ring"), f"{ENV_ENABLED} is set")


def test_the_config_wins_over_the_environment() -> None:
    environ = {ENV_ENABLED: "1", LAYOUT: "ring", CHOICE: "static"}
    found = read_activation({"expert_maps": {"layout": "append"}}, environ)
    assert found.settings == Settings(layout="append", replica_choice="static")
    assert found.reason == "expert_maps is in the additional config"


def test_the_environment_is_this_processs_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_ENABLED, raising=False)
    assert not read_activation({}).is_active
    monkeypatch.setenv(ENV_ENABLED, "1")
    monkeypatch.setenv(LAYOUT, "ring")
    assert read_activation({}).settings == Settings(layout="ring")


def test_options_that_have_no_effect_are_named() -> None:
    # And not validated: they are for a server that is not this one.
    one = read_activation({}, {LAYOUT: "spiral", "PATH": "x"})
    assert one.reason.endswith(f" (so {LAYOUT} has no effect)")
    several = read_activation({}, {CHOICE: "", LAYOUT: "ring", ENV_ENABLED: "0"})
    assert several.reason.endswith(f" (so {LAYOUT}, {CHOICE} have no effect)")
    assert not several.is_active


@pytest.mark.parametrize(
    ("config", "environ", "message"),
    [
        ({"expert_maps": {"layot": "ring"}}, {}, r"expert_maps\.layot is not an option; .*'layout'"),
        ({"expert_maps": [1]}, {}, r"expert_maps in the additional config is \[1\]; expected an object"),
        ({}, {ENV_ENABLED: "1", LAYOUT: "spiral"}, f"{LAYOUT} is 'spiral'; expected"),
        ({"expert_maps": {}}, {f"{ENV_PREFIX}LAYOT": "ring"}, f"{ENV_PREFIX}LAYOT is not an option"),
        ({}, {ENV_ENABLED: "perhaps"}, f"{ENV_ENABLED} is 'perhaps'; expected 1 or 0"),
    ],
)
def test_active_with_wrong_options_is_refused(
    config: dict[str, object], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        read_activation(config, environ)


# From the front end to the other processes


class Config:
    """vLLM's configuration, as far as it is read here."""

    def __init__(self, additional_config: object = None, worker_extension_cls: str = "") -> None:
        self.additional_config = {} if additional_config is None else additional_config
        self.parallel_config = SimpleNamespace(worker_extension_cls=worker_extension_cls)


def passed_on(config: Config) -> Any:  # noqa: ANN401 - a copy of it
    return pickle.loads(pickle.dumps(copy.deepcopy(config)))  # noqa: S301 - our own bytes


def test_what_the_front_end_found_holds_in_every_process() -> None:
    front = read_activation(
        {"expert_maps": {"num_redundant_experts": 4}}, {f"{ENV_PREFIX}POLICY": "deepseek_global"}
    )
    assert front.digest is None
    config = Config({"eplb_config": {}}, REPORT)
    leave_resolved(config, dataclasses.replace(front, backend="ascend_v1.AscendV1"), "abc")
    # Nothing in what vllm-ascend reads, and what vLLM hashes to see whether a compiled model still fits.
    assert config.additional_config == {"eplb_config": {}}
    # Another environment, and even a wrong one, changes nothing.
    for environ in (
        {},
        {LAYOUT: "spiral", ENV_ENABLED: "0"},
        {f"{ENV_PREFIX}NO_SUCH": "1", ENV_ENABLED: "x"},
    ):
        found = read_resolved(passed_on(config), environ)
        assert found == Activation(front.settings, front.reason, "abc", "ascend_v1.AscendV1")
        assert found.is_active


def test_what_is_said_does_not_get_lost_in_a_config_of_another_kind() -> None:
    with pytest.raises(SettingsError, match="the additional config is a str; expected an object"):
        leave_resolved(Config("a hash of its own"), Activation(Settings(), "asked"), "abc")


def test_an_engine_does_not_inherit_what_another_was_told() -> None:
    first, second = Config(), Config()
    leave_resolved(first, Activation(Settings(layout="ring"), "asked"), "abc")
    assert not read_resolved(second, {}).is_active
    leave_resolved(second, Activation(Settings(layout="append"), "asked"), "def")
    assert read_resolved(first, {}) == Activation(Settings(layout="ring"), "asked", "abc")


def test_what_the_front_end_turned_off_stays_off() -> None:
    front = Activation(None, "model has no experts")
    config = Config({"other": 1})
    leave_resolved(config, front, None)
    # Where the environment alone would activate it.
    assert read_resolved(passed_on(config), {ENV_ENABLED: "1"}) == front
    assert not read_resolved(passed_on(config), {ENV_ENABLED: "1"}).is_active


def test_a_process_that_no_front_end_has_told_stays_inactive() -> None:
    assert "has no effect here" in read_resolved(Config(), {ENV_ENABLED: "1"}).reason
    found = read_resolved(Config(), {LAYOUT: "ring"})
    assert not found.is_active
    assert LAYOUT in found.reason
    assert not read_resolved(Config("a hash of its own"), {}).is_active


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (Config({"expert_maps": {}}), "expert_maps"),
        # What was said got lost: served without the plugin, while the front end has said that it is active.
        (Config({}, REPORT), REPORT),
    ],
)
def test_a_configuration_made_without_the_front_end_is_refused(config: Config, what: str) -> None:
    with pytest.raises(
        SettingsError, match=f"^{what} is in a configuration that was made, or made anew, without"
    ):
        read_resolved(config, {})


# Versions


def test_versions_are_those_of_the_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.without_vllm(monkeypatch)
    installed = {"torch": "2.13.0+cpu", "expert-maps": "0.1.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    nothing = dict.fromkeys(("vllm", "torch-npu", "vllm-ascend"))
    assert versions() == {**nothing, **installed}
    # A build of another name says itself what it is; a distribution is believed first.
    fake_vllm.install(monkeypatch, [], version="0.32.0+cpu")
    assert versions()["vllm"] == "0.32.0+cpu"
    installed["vllm"] = "0.31.0"
    assert versions()["vllm"] == "0.31.0"


def test_vllms_version_is_its_own_word(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, [], version="0.31.2+empty")
    before = set(sys.modules)
    assert vllm_version() == "0.31.2+empty"
    assert set(sys.modules) == before
    fake_vllm.without_vllm(monkeypatch)
    assert vllm_version() is None


# The one line


def test_an_active_process_says_so_in_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch, [], version="0.32.0+cpu")
    with caplog.at_level(logging.INFO, logger="vllm.ascend_moe"):
        log_active("worker 3", "cpu", "layout ring (4 redundant, static)", "0123456789abcdef")
        log_active("front end", "cpu", "map.json", None)
    first, second = caplog.messages
    assert first.startswith(
        f"vllm-ascend-moe {vllm_ascend_moe.__version__} active in worker 3: device cpu, "
        "placement layout ring (4 redundant, static), digest 0123456789ab, "
    )
    assert "vllm 0.32.0+cpu, torch 2." in first
    assert "None" not in first
    assert "digest none, " in second
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert "\n" not in first


def test_an_inactive_process_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vllm.ascend_moe"):
        log_inactive(Activation(None, "nobody asked"))
    assert caplog.messages == [f"vllm-ascend-moe {vllm_ascend_moe.__version__} inactive: nobody asked"]
