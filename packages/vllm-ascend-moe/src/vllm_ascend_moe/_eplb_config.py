# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `init_eplb_config` is told, read from objects and mappings of other projects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from expert_maps import ExpertMapsError
from expert_maps.validation import as_count, as_index

_MISSING = object()


class EplbConfigError(ExpertMapsError):
    """The settings contradict each other or the map file; the message says what to change."""


@dataclass(frozen=True)
class EplbConfig:
    """vllm-ascend's `eplb_config`, as far as maps depend on it; None where nothing is said."""

    expert_map_path: str | None
    dynamic_eplb: bool
    num_redundant_experts: int
    expert_map_record_path: str | None

    @property
    def is_on(self) -> bool:
        """Dynamic EPLB and recording need log2phy; a map file is asked for by its path."""
        return self.dynamic_eplb or self.expert_map_record_path is not None


@dataclass(frozen=True)
class MoEConfig:
    """vLLM's `moe_config`, as far as maps depend on it; ``tp_rank`` is None where it is by ``ep_rank``."""

    num_experts: int
    ep_size: int
    ep_rank: int
    tp_size: int
    tp_rank: int | None


def get_setting(config: object, name: str, default: object) -> object:
    """Return an attribute (or a mapping's entry); absent or None means the default."""
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return default if value is None else value


def read_eplb_config(config: object) -> EplbConfig:
    """Read an object or a mapping.

    Raises:
        EplbConfigError: a setting has the wrong type or value.
    """
    dynamic = get_setting(config, "dynamic_eplb", default=False)
    if not isinstance(dynamic, bool):
        msg = f"dynamic_eplb is {dynamic!r}; expected true or false"
        raise EplbConfigError(msg)
    return EplbConfig(
        expert_map_path=_path(config, "expert_map_path"),
        dynamic_eplb=dynamic,
        num_redundant_experts=as_count(
            "num_redundant_experts", get_setting(config, "num_redundant_experts", 0), 0, error=EplbConfigError
        ),
        expert_map_record_path=_path(config, "expert_map_record_path"),
    )


def _path(config: object, name: str) -> str | None:
    value = get_setting(config, name, None)
    if value is None or isinstance(value, str):
        # An empty string is how an unset path arrives from JSON and from environment variables.
        return value or None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    msg = f"{name} is {value!r}; expected a path"
    raise EplbConfigError(msg)


def read_moe_config(config: object, ep_size: int) -> MoEConfig:
    """Read an object or a mapping; ``ep_size``, R, is known already.

    Raises:
        EplbConfigError: a setting is missing, or has the wrong type or value.
    """
    experts = get_setting(config, "num_experts", _MISSING)
    if experts is _MISSING:
        msg = "num_experts is missing in moe_config; expected the number of logical experts"
        raise EplbConfigError(msg)
    tp_size = as_count("tp_size", get_setting(config, "tp_size", 1), 1, error=EplbConfigError)
    tp_rank = get_setting(config, "tp_rank", None)
    return MoEConfig(
        num_experts=as_count("num_experts", experts, 1, error=EplbConfigError),
        ep_size=ep_size,
        ep_rank=as_index("ep_rank", get_setting(config, "ep_rank", 0), ep_size),
        tp_size=tp_size,
        tp_rank=None if tp_rank is None else as_index("tp_rank", tp_rank, tp_size),
    )
