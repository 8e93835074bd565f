# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The process that reads the command line: it checks what is asked for and switches on what vLLM needs.

vLLM makes the model's configuration before that of its parallelism, so between the two everything is known
that a placement is checked against, and nothing has been decided yet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe import releases
from vllm_ascend_moe.backends.ascend.checks import World, check_runner, check_served
from vllm_ascend_moe.backends.ascend.options import (
    EPLB_CONFIG,
    ascend_options,
    check_options,
    forget_engine,
    given_options,
    join_given,
    switch_dynamic_on,
)
from vllm_ascend_moe.core.activation import (
    REPORT,
    Activation,
    as_object,
    leave_resolved,
    log_active,
    read_activation,
    read_resolved,
    said_in,
    say_inactive,
    vllm_version,
)
from vllm_ascend_moe.core.settings import CONFIG_KEY, ENV_ENABLED, Settings, describe
from vllm_ascend_moe.core.sources import PlacementSource, count_layers, find_source
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.frontend_checks import (
    change,
    check_choice,
    check_even,
    check_one_rank,
    check_supported,
    count_ranks,
    count_stage_layers,
    make_eplb_config,
    needs_eplb_state,
)
from vllm_ascend_moe.hooks import table, wrapping
from vllm_ascend_moe.platforms import Kind, platform_kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.releases import Release

_PREPARATION = "_vllm_ascend_moe_preparation"
# Seconds in which engine processes may stop by themselves, where vLLM would kill them at once.
_STOP_SECONDS = 30.0


@dataclass
class _Preparation:
    """What one call of `create_engine_config` found and decided.

    Attributes:
        activation: the plugin's.
        kind: the platform's.
        source: None without expert parallelism, or where the plugin turned out to be inactive.
        eplb_config: vLLM's, where its EPLB state is needed; None where it is not.
        given: the engine arguments that were changed, as the user gave them.
    """

    activation: Activation
    kind: Kind
    source: PlacementSource | None = None
    eplb_config: Any = None
    given: dict[str, Any] = field(default_factory=dict)


def around_create_engine_config(
    original: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any
) -> Any:
    """Hook: prepare the arguments, let vLLM make its configuration, complete that."""
    forget_engine()
    activation = read_activation(engine_args.additional_config)
    if not activation.is_active:
        say_inactive(activation)
        return original(engine_args, *args, **kwargs)
    kind = platform_kind()
    wrapping.check_versions(ascend=kind == "ascend")
    preparation = _Preparation(activation, kind)
    setattr(engine_args, _PREPARATION, preparation)
    _hide_options(engine_args, preparation)
    try:
        config = original(engine_args, *args, **kwargs)
    except BaseException:
        forget_engine()
        raise
    finally:
        delattr(engine_args, _PREPARATION)
        for name, value in preparation.given.items():
            setattr(engine_args, name, value)
    if not preparation.activation.is_active:
        say_inactive(preparation.activation)
        # Or the environment would activate the other processes.
        leave_resolved(config, preparation.activation, None)
        return config
    return _complete(config, preparation)


def around_create_model_config(
    original: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any
) -> Any:
    """Hook: now that the model is known, check what is asked for and set the arguments for it."""
    model_config = original(engine_args, *args, **kwargs)
    preparation = getattr(engine_args, _PREPARATION, None)
    if preparation is not None:
        _prepare(engine_args, model_config, preparation)
    return model_config


def around_executor_init(
    original: Callable[..., Any], executor: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> Any:
    """Hook: the engine core says that it is active; it has nothing else to do."""
    activation = read_resolved(vllm_config)
    if activation.is_active:
        if os.getpid() not in said_in:
            said_in.add(os.getpid())
            settings = activation.settings
            assert settings is not None
            log_active(
                "engine core", vllm_config.device_config.device_type, describe(settings), activation.digest
            )
    else:
        say_inactive(activation)
    return original(executor, vllm_config, *args, **kwargs)


def _prepare(engine_args: Any, model_config: Any, preparation: _Preparation) -> None:
    if not _has_experts(engine_args, model_config, preparation):
        return
    release = _release(engine_args) if preparation.kind == "ascend" else None
    settings, source = _settle(engine_args, model_config, preparation, release)
    preparation.activation = replace(preparation.activation, settings=settings)
    preparation.source = source
    if not engine_args.worker_extension_cls:
        _set(engine_args, preparation, "worker_extension_cls", REPORT)
    if source.placement.ep_size > 1:
        _set(engine_args, preparation, "enable_expert_parallel", value=True)
    if release is not None:
        _prepare_ascend(engine_args, model_config, preparation, release)
        return
    given = engine_args.eplb_config
    if not needs_eplb_state(settings, given, source):
        _set(engine_args, preparation, "enable_eplb", value=False)
        return
    check_even(source)
    preparation.eplb_config = make_eplb_config(settings, given, preparation.kind)
    # vLLM refuses EPLB on a CPU while it makes its configuration; there it is switched on afterwards.
    accepts = preparation.kind != "cpu"
    _set(engine_args, preparation, "enable_eplb", value=accepts)
    _set(engine_args, preparation, "eplb_config", preparation.eplb_config if accepts else type(given)())


def _has_experts(engine_args: Any, model_config: Any, preparation: _Preparation) -> bool:
    """Refuse a dense model, or turn inactive where nothing is asked of it."""
    if model_config.get_num_experts():
        return True
    if (
        ENV_ENABLED in preparation.activation.reason
        and preparation.activation.settings == Settings()
        and not engine_args.enable_eplb
    ):
        # Set for a whole machine perhaps; nothing is asked of this model.
        preparation.activation = Activation(None, f"{model_config.model} has no experts")
        return False
    msg = (
        f"{model_config.model} is a dense model, with 0 experts; expected a Mixture-of-Experts model. Leave "
        "out expert_maps and --enable-eplb for it"
    )
    raise EplbConfigError(msg)


def _settle(
    engine_args: Any, model_config: Any, preparation: _Preparation, release: Release | None
) -> tuple[Settings, PlacementSource]:
    """Fill in what was left open, find the placement, and check both."""
    settings = preparation.activation.settings
    assert settings is not None
    ep_size = count_ranks(engine_args)
    given = engine_args.eplb_config
    if release is not None:
        settings = join_given(settings, engine_args.additional_config)
    dynamic = engine_args.enable_eplb if settings.dynamic is None else settings.dynamic
    settings = change(settings, dynamic=dynamic)
    if settings.num_redundant_experts is None and settings.expert_map_path is None:
        settings = change(settings, num_redundant_experts=given.num_redundant_experts)
    check_supported(settings, engine_args, preparation.kind)
    check_one_rank(settings, ep_size, dynamic=dynamic, kind=preparation.kind)
    if release is not None:
        check_options(settings, release)
        if settings.num_redundant_experts and settings.expert_map_path is None:
            # What it starts from is said by name, to every process and in the log.
            settings = change(settings, layout=release.layout)
    num_layers = count_layers(model_config)
    source = find_source(settings, int(model_config.get_num_experts()), ep_size, num_layers)
    redundant = source.placement.num_redundant_experts
    if given.num_redundant_experts not in {0, redundant}:
        msg = (
            f"num_redundant_experts is {given.num_redundant_experts} in --eplb-config, but {source.name} has "
            f"{redundant}; leave it out of --eplb-config"
        )
        raise EplbConfigError(msg)
    settings = change(settings, num_redundant_experts=redundant)
    check_choice(settings, source, engine_args)
    return settings, source


def _release(engine_args: Any) -> Release:
    """Return what the plugin knows of this vllm-ascend, beside which it can serve."""
    check_runner(engine_args, os.environ)
    version = wrapping.vllm_ascend_version()
    release = releases.find(version)
    if release is None:
        raise EplbConfigError(releases.problem(version, vllm_version()))
    return release


def _prepare_ascend(engine_args: Any, model_config: Any, preparation: _Preparation, release: Release) -> None:
    """Refuse what vllm-ascend would serve wrongly, and write its options for the rest."""
    settings, source = preparation.activation.settings, preparation.source
    assert settings is not None
    assert source is not None
    given = engine_args.additional_config
    options = given_options(given)
    check_served(settings, source, release, options, World.of(engine_args, model_config))
    options = ascend_options(settings, options, release, count_stage_layers(engine_args, source))
    _set(engine_args, preparation, "additional_config", {**given, EPLB_CONFIG: options})
    preparation.activation = replace(preparation.activation, way="vllm-ascend")
    if settings.dynamic:
        switch_dynamic_on()


def _hide_options(engine_args: Any, preparation: _Preparation) -> None:
    """Take the plugin's options out of what vLLM and vllm-ascend see: some releases refuse keys that are not theirs."""
    given = as_object(engine_args.additional_config)
    theirs = {name: value for name, value in given.items() if name != CONFIG_KEY}
    _set(engine_args, preparation, "additional_config", theirs)


def _set(engine_args: Any, preparation: _Preparation, name: str, value: object) -> None:
    preparation.given.setdefault(name, getattr(engine_args, name))
    setattr(engine_args, name, value)


def _complete(config: Any, preparation: _Preparation) -> Any:
    activation, source = preparation.activation, preparation.source
    assert activation.settings is not None
    assert source is not None
    if preparation.eplb_config is not None and preparation.kind == "cpu":
        config.parallel_config.eplb_config = preparation.eplb_config
        config.parallel_config.enable_eplb = True
    leave_resolved(config, activation, source.digest)
    if activation.settings.record_path is not None:
        wrapping.check_hooks([table.STOP_TIMEOUT])
        wrapping.wrap(table.STOP_TIMEOUT, _allow_time_to_stop)
    said_in.add(os.getpid())
    device = config.device_config.device_type
    log_active("front end", device, describe(activation.settings), source.digest)
    return config


def _allow_time_to_stop(original: Callable[..., Any], *args: Any, **kwargs: Any) -> float | None:
    """Hook: by default a server kills its engines at once, or after 5 s; let the record be written first."""
    timeout = original(*args, **kwargs)
    return timeout or _STOP_SECONDS
