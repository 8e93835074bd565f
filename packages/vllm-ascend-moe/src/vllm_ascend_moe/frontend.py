# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The process that reads the command line: it checks what is asked for and switches on what vLLM needs.

vLLM makes the model's configuration before that of its parallelism, so between the two everything is known
that a placement is checked against, and nothing has been decided yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe import upstream
from vllm_ascend_moe.activation import (
    RESOLVED_KEY,
    Activation,
    log_active,
    log_inactive,
    read_activation,
    read_resolved,
)
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.platforms import Kind, platform_kind
from vllm_ascend_moe.settings import ENV_ENABLED, Settings, SettingsError, read_settings
from vllm_ascend_moe.slots import SlotRule
from vllm_ascend_moe.sources import PlacementSource, find_source

if TYPE_CHECKING:
    from collections.abc import Callable

_PREPARATION = "_vllm_ascend_moe_preparation"
_REPORT = "vllm_ascend_moe.report.WorkerReport"
# Steps that no server lives to see.
_NEVER = 10**9
# Seconds in which engine processes may stop by themselves, where vLLM would kill them at once.
_STOP_SECONDS = 30.0

# The process that has said whether it is active; a forked child says so again.
_said_in: set[int] = set()


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
    activation = read_activation(engine_args.additional_config)
    if not activation.is_active:
        say_inactive(activation)
        return original(engine_args, *args, **kwargs)
    kind = platform_kind()
    upstream.check_versions(ascend=kind == "ascend")
    preparation = _Preparation(activation, kind)
    setattr(engine_args, _PREPARATION, preparation)
    try:
        config = original(engine_args, *args, **kwargs)
    finally:
        delattr(engine_args, _PREPARATION)
        for name, value in preparation.given.items():
            setattr(engine_args, name, value)
    if not preparation.activation.is_active:
        say_inactive(preparation.activation)
        # Or the environment would activate the other processes.
        _leave_resolved(config, preparation.activation, None)
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
    activation = read_resolved(vllm_config.additional_config)
    if activation.is_active:
        if os.getpid() not in _said_in:
            _said_in.add(os.getpid())
            settings = activation.settings
            assert settings is not None
            log_active(
                "engine core", vllm_config.device_config.device_type, describe(settings), activation.digest
            )
    else:
        say_inactive(activation)
    return original(executor, vllm_config, *args, **kwargs)


def describe(settings: Settings) -> str:
    """Name where a placement comes from and whether it stays."""
    layout = settings.layout or ("ring" if settings.num_redundant_experts else "linear")
    source = settings.expert_map_path or f"layout {layout}"
    redundant = settings.num_redundant_experts or 0
    return f"{source} ({redundant} redundant, {'dynamic' if settings.dynamic else 'static'})"


def say_inactive(activation: Activation) -> None:
    """Say once in this process that the plugin does nothing here."""
    if os.getpid() not in _said_in:
        _said_in.add(os.getpid())
        log_inactive(activation)


def _prepare(engine_args: Any, model_config: Any, preparation: _Preparation) -> None:
    settings = preparation.activation.settings
    assert settings is not None
    num_experts = int(model_config.get_num_experts() or 0)
    if num_experts == 0:
        if (
            ENV_ENABLED in preparation.activation.reason
            and settings == Settings()
            and not engine_args.enable_eplb
        ):
            # Set for a whole machine perhaps; nothing is asked of this model.
            preparation.activation = Activation(None, f"{model_config.model} has no experts")
            return
        msg = (
            f"{model_config.model} is a dense model, with 0 experts; expected a Mixture-of-Experts model. Leave "
            "out expert_maps and --enable-eplb for it"
        )
        raise EplbConfigError(msg)
    ep_size = _ep_size(engine_args)
    given = engine_args.eplb_config
    dynamic = engine_args.enable_eplb if settings.dynamic is None else settings.dynamic
    settings = _with(settings, dynamic=dynamic)
    if settings.num_redundant_experts is None and settings.expert_map_path is None:
        settings = _with(settings, num_redundant_experts=given.num_redundant_experts)
    _check_supported(settings, engine_args, preparation.kind)
    _check_one_rank(settings, ep_size, dynamic=dynamic, kind=preparation.kind)
    source = find_source(settings, num_experts, ep_size)
    redundant = source.placement.num_redundant_experts
    if given.num_redundant_experts not in {0, redundant}:
        msg = (
            f"num_redundant_experts is {given.num_redundant_experts} in --eplb-config, but {source.name} has "
            f"{redundant}; leave it out of --eplb-config"
        )
        raise EplbConfigError(msg)
    settings = _with(settings, num_redundant_experts=redundant)
    _check_choice(settings, source, engine_args)
    preparation.activation = replace(preparation.activation, settings=settings)
    preparation.source = source
    if not engine_args.worker_extension_cls:
        _set(engine_args, preparation, "worker_extension_cls", _REPORT)
    if ep_size > 1:
        _set(engine_args, preparation, "enable_expert_parallel", value=True)
    if preparation.kind == "ascend" and not engine_args.enable_eplb:
        from vllm_ascend_moe.ascend import ascend_options

        options = {
            **(engine_args.additional_config or {}),
            "eplb_config": ascend_options(settings, engine_args),
        }
        _set(engine_args, preparation, "additional_config", options)
        return
    if not _needs_eplb_state(settings, given, source):
        _set(engine_args, preparation, "enable_eplb", value=False)
        return
    _check_even(source, ep_size, num_experts)
    preparation.eplb_config = _eplb_config(settings, given, preparation.kind)
    # vLLM refuses EPLB on a CPU while it makes its configuration; there it is switched on afterwards.
    accepts = preparation.kind != "cpu"
    _set(engine_args, preparation, "enable_eplb", value=accepts)
    _set(engine_args, preparation, "eplb_config", preparation.eplb_config if accepts else type(given)())


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
    _leave_resolved(config, activation, source.digest)
    if activation.settings.record_path is not None:
        upstream.check_hooks([upstream.STOP_TIMEOUT])
        upstream.wrap(upstream.STOP_TIMEOUT, _allow_time_to_stop)
    _said_in.add(os.getpid())
    device = config.device_config.device_type
    log_active("front end", device, describe(activation.settings), source.digest)
    return config


def _leave_resolved(config: Any, activation: Activation, digest: str | None) -> None:
    given = config.additional_config or {}
    if not isinstance(given, Mapping):
        msg = f"the additional config is a {type(given).__name__}; expected an object, to which the plugin adds its own"
        raise SettingsError(msg)
    config.additional_config = {
        **given,
        RESOLVED_KEY: activation.resolved(digest),
    }


def _allow_time_to_stop(original: Callable[..., Any], *args: Any, **kwargs: Any) -> float | None:
    """Hook: by default a server kills its engines at once, or after 5 s; let the record be written first."""
    timeout = original(*args, **kwargs)
    return timeout or _STOP_SECONDS


def _ep_size(engine_args: Any) -> int:
    sizes = ("tensor_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
    product = 1
    for name in sizes:
        product *= getattr(engine_args, name, 1)
    return product


def _with(settings: Settings, **changes: object) -> Settings:
    """Return the settings with some of them changed, validated as if they had been given so."""
    return read_settings({**settings.model_dump(), **changes})


def _check_supported(settings: Settings, engine_args: Any, kind: Kind) -> None:
    if getattr(engine_args, "enable_elastic_ep", False):
        msg = "enable_elastic_ep is true; expected false: a placement is for one number of ranks"
        raise EplbConfigError(msg)
    if settings.load_collection_phase != "all" and kind == "gpu":
        msg = (
            f"load_collection_phase is {settings.load_collection_phase}; expected 'all': vLLM's kernels do not tell "
            "prompts from what is generated"
        )
        raise EplbConfigError(msg)


def _check_one_rank(settings: Settings, ep_size: int, *, dynamic: bool, kind: Kind) -> None:
    if ep_size > 1:
        return
    for quantity, value, wrong in (
        ("num_redundant_experts", settings.num_redundant_experts, bool(settings.num_redundant_experts)),
        ("dynamic", True, dynamic),
        ("record_path", settings.record_path, settings.record_path is not None and kind != "cpu"),
    ):
        if wrong:
            msg = (
                f"{quantity} is {value} on one rank; expected at least two: start with a "
                "--tensor-parallel-size or --data-parallel-size above 1, or leave it out"
            )
            raise EplbConfigError(msg)


def _check_choice(settings: Settings, source: PlacementSource, engine_args: Any) -> None:
    """Refuse a replica choice or weights that do not fit, before anything is loaded."""
    tp_size = engine_args.tensor_parallel_size
    # Whether vLLM splits tokens is not known yet; it does so only with data parallelism.
    may_split = engine_args.data_parallel_size > 1
    rule = SlotRule.from_settings(
        settings, ep_size=source.placement.ep_size, tp_size=tp_size, splits_tokens=may_split
    )
    if source.is_file or rule.weights is None:
        rule.tables(source.placement)


def _needs_eplb_state(settings: Settings, given: Any, source: PlacementSource) -> bool:
    """Whether vLLM's EPLB is needed: not for what its expert parallelism does without."""
    logs = given.log_balancedness if settings.log_balancedness is None else settings.log_balancedness
    moves = source.placement.ep_size > 1 and not source.is_linear
    return bool(settings.dynamic or moves or settings.record_path is not None or logs)


def _check_even(source: PlacementSource, ep_size: int, num_experts: int) -> None:
    if source.placement.num_physical_experts % ep_size or not source.placement.is_even:
        lacking = -num_experts % ep_size
        msg = (
            f"{source.name} gives {ep_size} ranks {sorted(set(source.placement.slots_per_rank.tolist()))} slots; "
            f"expected equally many: vLLM moves experts and records load only then. num_redundant_experts "
            f"{lacking} makes it so"
        )
        raise EplbConfigError(msg)


def _eplb_config(settings: Settings, given: Any, kind: Kind) -> Any:
    """Return vLLM's EPLB settings: the user's, with the plugin's over them."""
    changes: dict[str, Any] = {
        name: value
        for name in ("step_interval", "window_size", "log_balancedness", "log_balancedness_interval")
        if (value := getattr(settings, name)) is not None
    }
    changes["num_redundant_experts"] = settings.num_redundant_experts
    if not settings.dynamic:
        # No rearrangement, so no window to look back on.
        changes |= {"step_interval": _NEVER, "window_size": 1, "use_async": False}
    if kind == "cpu":
        # The asynchronous worker needs a device with streams. This communicator takes the CPU's process group
        # for tensors on a CPU; the one for gloo stages through an accelerator.
        changes |= {"use_async": False, "communicator": "torch_nccl"}
    return replace(given, **changes)
