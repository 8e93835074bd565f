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

from vllm_ascend_moe import backends
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
)
from vllm_ascend_moe.core.exposition import prepare_folder
from vllm_ascend_moe.core.replicas import SlotRule
from vllm_ascend_moe.core.settings import CONFIG_KEY, ENV_ENABLED, Settings, describe
from vllm_ascend_moe.core.sources import PlacementSource, count_layers, find_source
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.backends.interface import Front

_PREPARATION = "_vllm_ascend_moe_preparation"
# Seconds in which engine processes may stop by themselves, where vLLM would kill them at once.
_STOP_SECONDS = 30.0
# Of the engine before this one in the same process.
_last: list[Front] = []


@dataclass
class _Preparation:
    """What one call of `create_engine_config` found and decided.

    Attributes:
        activation: the plugin's.
        front: the platform's.
        source: None until the model is known, or where the plugin turned out to be inactive.
        given: the engine arguments that were changed, as the user gave them.
    """

    activation: Activation
    front: Front
    source: PlacementSource | None = None
    given: dict[str, Any] = field(default_factory=dict)


def around_create_engine_config(
    original: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any
) -> Any:
    """Hook: prepare the arguments, let vLLM make its configuration, complete that."""
    while _last:
        _last.pop().forget_engine()
    activation = read_activation(engine_args.additional_config)
    if not activation.is_active:
        say_inactive(activation)
        return original(engine_args, *args, **kwargs)
    front = backends.front()
    front.check_versions()
    front.forget_engine()
    _last.append(front)
    preparation = _Preparation(activation, front)
    setattr(engine_args, _PREPARATION, preparation)
    _hide_options(engine_args, preparation)
    try:
        config = original(engine_args, *args, **kwargs)
    except BaseException:
        front.forget_engine()
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
    settings, source = _settle(engine_args, model_config, preparation)
    front = preparation.front
    preparation.activation = replace(preparation.activation, settings=settings, backend=front.backend)
    preparation.source = source
    if not engine_args.worker_extension_cls:
        _set(engine_args, preparation, "worker_extension_cls", REPORT)
    if source.placement.ep_size > 1:
        _set(engine_args, preparation, "enable_expert_parallel", value=True)
    for name, value in front.arguments(settings, source, engine_args, model_config).items():
        _set(engine_args, preparation, name, value)


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
    engine_args: Any, model_config: Any, preparation: _Preparation
) -> tuple[Settings, PlacementSource]:
    """Fill in what was left open, find the placement, and check both."""
    settings, front = preparation.activation.settings, preparation.front
    assert settings is not None
    if getattr(engine_args, "enable_elastic_ep", False):
        msg = "enable_elastic_ep is true; expected false: a placement is for one number of ranks"
        raise EplbConfigError(msg)
    if settings.record_path is None and not settings.record_at_start:
        msg = "record_at_start is false and record_path is not given; expected it with a record_path, the file to write"
        raise EplbConfigError(msg)
    given = engine_args.eplb_config
    settings = front.join(settings, engine_args)
    if settings.dynamic is None:
        settings = settings.changed(dynamic=engine_args.enable_eplb)
    if settings.num_redundant_experts is None and settings.expert_map_path is None:
        settings = settings.changed(num_redundant_experts=given.num_redundant_experts)
    ep_size = _count_ranks(engine_args)
    if ep_size == 1:
        _check_one_rank(settings, front)
    settings = front.settle(settings)
    num_layers = count_layers(model_config)
    source = find_source(
        settings,
        int(model_config.get_num_experts()),
        ep_size,
        num_layers,
        allow_duplicates=front.takes_duplicates,
    )
    redundant = source.placement.num_redundant_experts
    if given.num_redundant_experts not in {0, redundant}:
        msg = (
            f"num_redundant_experts is {given.num_redundant_experts} in --eplb-config, but {source.name} has "
            f"{redundant}; leave it out of --eplb-config"
        )
        raise EplbConfigError(msg)
    settings = settings.changed(num_redundant_experts=redundant)
    _check_choice(settings, source, engine_args, front)
    return settings, source


def _count_ranks(engine_args: Any) -> int:
    """Return R, the expert-parallel ranks that vLLM will make.

    Raises:
        EplbConfigError: the environment says something else than a number.
    """
    product = 1
    for name in ("tensor", "data", "prefill_context"):
        product *= getattr(engine_args, f"{name}_parallel_size", 1)
    # vLLM's offline data parallelism: a program for each rank, which the environment tells how many there are.
    if getattr(engine_args, "data_parallel_size", 1) == 1:
        said = os.environ.get("VLLM_DP_SIZE", "1")
        if not (said.isascii() and said.isdigit() and int(said)):
            msg = f"the environment variable VLLM_DP_SIZE is {said!r}; expected a number of ranks, at least 1"
            raise EplbConfigError(msg)
        product *= int(said)
    return product


def _check_one_rank(settings: Settings, front: Front) -> None:
    """Refuse what one rank cannot do."""
    records = settings.record_path is not None and not front.records_alone
    for quantity, value, wrong in (
        ("num_redundant_experts", settings.num_redundant_experts, bool(settings.num_redundant_experts)),
        ("dynamic", True, settings.dynamic),
        ("record_path", settings.record_path, records),
        ("log_balancedness", True, bool(settings.log_balancedness) and not front.records_alone),
    ):
        if wrong:
            msg = (
                f"{quantity} is {value} on one rank; expected at least two: start with a "
                "--tensor-parallel-size or --data-parallel-size above 1, or leave it out"
            )
            raise EplbConfigError(msg)


def _check_choice(settings: Settings, source: PlacementSource, engine_args: Any, front: Front) -> None:
    """Refuse a replica choice or weights that do not fit, before anything is loaded."""
    tp_size = engine_args.tensor_parallel_size
    # Whether vLLM splits tokens is not known yet; it does so only with data parallelism.
    may_split = engine_args.data_parallel_size > 1 or front.splits_tokens
    rule = SlotRule.from_settings(
        settings, source, ep_size=source.placement.ep_size, tp_size=tp_size, splits_tokens=may_split
    )
    if source.is_file or rule.weights is None:
        rule.tables(source.placement)


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
    settings = activation.settings
    assert settings is not None
    assert source is not None
    preparation.front.complete(config)
    if settings.metrics:
        activation = replace(activation, metrics_folder=prepare_folder())
    leave_resolved(config, activation, source.digest)
    if settings.record_path is not None:
        # Older releases, beside vllm-ascend, have no such function: they allow 5 s.
        if table.STOP_TIMEOUT in preparation.front.hooks():
            wrapping.check_hooks([table.STOP_TIMEOUT])
        if not list(wrapping.problems([table.STOP_TIMEOUT])):
            wrapping.wrap(table.STOP_TIMEOUT, _allow_time_to_stop)
    said_in.add(os.getpid())
    device = config.device_config.device_type
    log_active("front end", device, describe(settings), source.digest)
    return config


def _allow_time_to_stop(original: Callable[..., Any], *args: Any, **kwargs: Any) -> float | None:
    """Hook: by default a server kills its engines at once, or after 5 s; let the record be written first."""
    timeout = original(*args, **kwargs)
    return timeout or _STOP_SECONDS
