# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Between the plugin's options and vllm-ascend's ``eplb_config``: read what the user gave there, write what is asked."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.core.settings import VLLM_POLICY, Settings, read_settings
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    from vllm_ascend_moe.releases import Release

EPLB_CONFIG = "eplb_config"
# vllm-ascend insists on one of two variables beside dynamic EPLB; the workers inherit it.
_DYNAMIC, _RECORD = "DYNAMIC_EPLB", "EXPERT_MAP_RECORD"
# By the same variables it decides, where it is imported, whether workers may have children: its EPLB process is one.
_EXECUTOR = "vllm_ascend.patch.platform.patch_multiproc_executor"
_ASCEND_CONFIG = "vllm_ascend.ascend_config"
# vllm-ascend's names for what the plugin has an option for, too.
_COUNTERPARTS = {
    "expert_map_path": "expert_map_path",
    "dynamic_eplb": "dynamic",
    "num_redundant_experts": "num_redundant_experts",
    "expert_heat_collection_interval": "window_size",
    "eplb_heat_collection_stage": "load_collection_phase",
}
_INTERVAL = "algorithm_execution_interval"
_RECORDS = "expert_map_record_path"
# By which policy vllm-ascend plans.
POLICY_TYPE = "eplb_policy_type"


def given_options(additional_config: object) -> dict[str, Any]:
    """Return what the user gave as vllm-ascend's ``eplb_config``; empty for none.

    Raises:
        EplbConfigError: it is no object.
    """
    given = additional_config if isinstance(additional_config, Mapping) else {}
    options = given.get(EPLB_CONFIG)
    if options is not None and not isinstance(options, Mapping):
        msg = f"{EPLB_CONFIG} in the additional config is {options!r}; expected an object"
        raise EplbConfigError(msg)
    return dict(options or {})


def join_given(settings: Settings, additional_config: object) -> Settings:
    """Take what the user gave as vllm-ascend's ``eplb_config`` as if it had been given as the plugin's options.

    Otherwise log, digest and comparison would speak of another placement than the one that is served.

    Raises:
        EplbConfigError: an option is given in both places, with two values.
    """
    given = given_options(additional_config)
    defaults = Settings()
    changes: dict[str, Any] = {}
    for theirs, ours in _COUNTERPARTS.items():
        value, mine = given.get(theirs), getattr(settings, ours)
        # An empty path, like null, is how scripts pass none on.
        if value is None or value == "":
            continue
        if mine not in {getattr(defaults, ours), value}:
            msg = (
                f"{ours} is {mine!r} in expert_maps, but {theirs} is {value!r} in {EPLB_CONFIG}; expected it in one "
                "place, best in expert_maps"
            )
            raise EplbConfigError(msg)
        changes[ours] = value
    if given.get(_RECORDS):
        # vllm-ascend records by its dynamic EPLB, whatever is said of that.
        changes["dynamic"] = True
    if given.get(POLICY_TYPE) is not None:
        if settings.policy not in {None, VLLM_POLICY}:
            msg = (
                f"policy is {settings.policy!r} in expert_maps, and {POLICY_TYPE} is {given[POLICY_TYPE]!r} in "
                f"{EPLB_CONFIG}; expected one of them: the first plans by expert-maps, the second by vllm-ascend"
            )
            raise EplbConfigError(msg)
        changes["policy"] = VLLM_POLICY
    if settings.step_interval is not None and given.get(_INTERVAL) is not None:
        msg = (
            f"step_interval is {settings.step_interval} in expert_maps, and {_INTERVAL} is {given[_INTERVAL]!r} in "
            f"{EPLB_CONFIG}; expected one of them"
        )
        raise EplbConfigError(msg)
    if changes.get("expert_map_path") and settings.layout is not None:
        msg = (
            f"layout is {settings.layout!r} in expert_maps, but expert_map_path is {changes['expert_map_path']!r} in "
            f"{EPLB_CONFIG}; expected one of them"
        )
        raise EplbConfigError(msg)
    return read_settings({**settings.model_dump(), **changes})


def check_options(settings: Settings, release: Release) -> None:
    """Refuse options that have no counterpart in a release of vllm-ascend.

    Args:
        settings: the plugin's, the user's ``eplb_config`` among them.
        release: vllm-ascend's.

    Raises:
        EplbConfigError: see above.
    """
    own = {"max_moves": settings.max_moves, "max_layers": settings.max_layers, "min_gain": settings.min_gain}
    for name, value in own.items() if settings.policy == VLLM_POLICY else ():
        if value is not None:
            msg = (
                f"{name} is {value}, where vllm-ascend plans by its own policy; expected it with a policy of expert-maps: "
                f"leave out policy {VLLM_POLICY!r} and {POLICY_TYPE}"
            )
            raise EplbConfigError(msg)
    if settings.load_collection_phase != "all" and not release.has_heat_stage:
        msg = (
            f"load_collection_phase is {settings.load_collection_phase} with vllm-ascend {release.vllm_ascend}; "
            "expected a later one, or 'all'"
        )
        raise EplbConfigError(msg)


def chooses(settings: Settings) -> bool:
    """Whether it is asked for how copies are chosen; if not, vllm-ascend's layer sends a rank's tokens to one of them."""
    return settings.replica_choice is not None or settings.replica_weights_path is not None


def counts_load(settings: Settings) -> bool:
    """Whether the expert load is asked for, which vllm-ascend counts only where its dynamic EPLB is on."""
    return settings.record_path is not None or bool(settings.log_balancedness)


def needs_eplb(settings: Settings) -> bool:
    """Whether vllm-ascend's dynamic EPLB must be on: to move experts, to count their load, or to have copies by layout."""
    is_own_layout = settings.expert_map_path is None and (
        bool(settings.num_redundant_experts) or settings.layout == "round_robin"
    )
    return bool(settings.dynamic) or counts_load(settings) or is_own_layout


def ascend_options(
    settings: Settings, given: Mapping[str, Any], release: Release, num_layers: int | None
) -> dict[str, Any]:
    """Return vllm-ascend's ``eplb_config`` for the plugin's settings, over what the user gave there.

    Args:
        settings: the plugin's, checked by `check_options`.
        given: the user's ``eplb_config``.
        release: vllm-ascend's.
        num_layers: MoE layers of the model; None for not known.

    Raises:
        EplbConfigError: the intervals do not leave vllm-ascend a step to plan in.
    """
    options = dict(given)
    if settings.expert_map_path is not None:
        options["expert_map_path"] = settings.expert_map_path
    if needs_eplb(settings):
        options["dynamic_eplb"] = True
    if needs_eplb(settings) or (release.fills == "append" and settings.expert_map_path is not None):
        # Slots are made before the map is read where the loader fills them by itself.
        options["num_redundant_experts"] = settings.num_redundant_experts or 0
    if settings.window_size is not None:
        options["expert_heat_collection_interval"] = settings.window_size
    if settings.step_interval is not None:
        options["algorithm_execution_interval"] = _planning_steps(settings, release, num_layers)
    if settings.load_collection_phase != "all":
        options["eplb_heat_collection_stage"] = settings.load_collection_phase
    return options


def _planning_steps(settings: Settings, release: Release, num_layers: int | None) -> int:
    """A cycle of vllm-ascend counts load, then plans, then moves a layer a step."""
    assert settings.step_interval is not None
    window = release.heat_interval if settings.window_size is None else settings.window_size
    if num_layers is None:
        msg = (
            f"step_interval is {settings.step_interval}, but how many MoE layers a stage of the model has is not known "
            f"before it is loaded; expected {_INTERVAL} in {EPLB_CONFIG} instead, steps − window_size − layers"
        )
        raise EplbConfigError(msg)
    steps = settings.step_interval - window - num_layers
    if steps < 1:
        msg = (
            f"step_interval is {settings.step_interval}; expected at least {window + num_layers + 1}: vllm-ascend takes "
            f"{window} steps to count (window_size), 1 or more to plan and {num_layers} to move a layer each"
        )
        raise EplbConfigError(msg)
    return steps


# Whether this process's variable is the plugin's.
_switched_on: list[str] = []


def switch_dynamic_on() -> None:
    """Let vllm-ascend's dynamic EPLB start: its variable, and workers that may have children."""
    if not any(os.environ.get(name) for name in (_DYNAMIC, _RECORD)):
        os.environ[_DYNAMIC] = "true"
        _switched_on.append(_DYNAMIC)
    importlib.import_module(_EXECUTOR)


def forget_engine() -> None:
    """Undo what an engine before this one, in the same process, was switched on with."""
    while _switched_on:
        os.environ.pop(_switched_on.pop(), None)
    # Some releases keep the first engine's options for every later one.
    module = sys.modules.get(_ASCEND_CONFIG)
    if module is not None:
        module.clear_ascend_config()


__all__ = [
    "EPLB_CONFIG",
    "POLICY_TYPE",
    "ascend_options",
    "check_options",
    "chooses",
    "counts_load",
    "forget_engine",
    "given_options",
    "join_given",
    "needs_eplb",
    "switch_dynamic_on",
]
