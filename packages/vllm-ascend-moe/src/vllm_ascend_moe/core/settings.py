# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every option of the plugin, in one validated class."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from expert_maps import POLICY_NAMES, ExpertMapsError, LayoutName
from expert_maps.files import printable
from expert_maps.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from collections.abc import Iterable

CONFIG_KEY = "expert_maps"
# Of what is no option, in a message.
_LONGEST_NAME = 100
ENV_PREFIX = "VLLM_ASCEND_MOE_"
ENV_ENABLED = "VLLM_ASCEND_MOE_ENABLED"

# vLLM's own balancing policy, beside those of expert-maps.
VLLM_POLICY = "vllm"
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_RECORD_SUFFIXES = (".npz", ".npy")
# Of these only one can be given, so one in the config overrides the other in the environment.
_RIVALS = {"expert_map_path": "layout", "layout": "expert_map_path"}


class SettingsError(ExpertMapsError):
    """An option is unknown, has a wrong value or contradicts another; the message says what to change."""


def _as_path(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if _is_unset(value) else value


def _is_unset(value: object) -> bool:
    # An empty string is how an unset path arrives from scripts.
    return value is None or (isinstance(value, str) and not value)


FilePath = Annotated[str | None, BeforeValidator(_as_path)]
ReplicaChoiceName = Literal["static", "own_rank", "tensor_parallel", "local", "rank_offset", "weighted"]
Phase = Literal["all", "prefill", "decode"]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Interval = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class _Options(BaseModel):
    """The options one by one: their names and types."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    expert_map_path: FilePath = None
    layout: LayoutName | None = None
    num_redundant_experts: Count | None = None
    dynamic: bool | None = None
    policy: str | None = None
    max_moves: Count | None = None
    max_layers: Interval | None = None
    min_gain: Share | None = None
    record_path: FilePath = None
    replica_choice: ReplicaChoiceName | None = None
    replica_weights_path: FilePath = None
    load_collection_phase: Phase = "all"
    step_interval: Interval | None = None
    window_size: Interval | None = None
    record_interval: Interval = 100
    log_balancedness: bool | None = None
    log_balancedness_interval: Interval | None = None
    record_at_start: bool = True
    metrics: bool = True


class Settings(_Options):
    """What can be asked for, as ``--additional-config '{"expert_maps": {…}}'`` or ``VLLM_ASCEND_MOE_*``.

    Attributes:
        expert_map_path: a map file with a placement for each MoE layer; it alone decides the redundancy.
        layout: an initial placement by name, where there is no map file; None for ``linear`` without redundant
            experts and ``ring`` with them, beside vllm-ascend the release's own.
        num_redundant_experts: redundant experts of a layer, over all ranks; None for the map file's, or 0.
        dynamic: whether experts are moved while serving; None for whether vLLM's ``--enable-eplb`` is given.
        policy: how a dynamic placement is planned: a policy of expert-maps, or ``vllm`` for vLLM's own, beside
            vllm-ascend its own; None for expert-maps' default.
        max_moves: slots of a layer that one rearrangement may change, with the policy ``balanced``; None for any
            number.
        max_layers: most layers that one rearrangement moves, those in which it saves most; None for any number.
        min_gain: the least share of the hottest ranks' tokens that a rearrangement must save, or nothing moves; None
            for an estimate, see `vllm_ascend_moe.core.gain`: what is saved until the next one against the time that
            moving takes.
        record_path: an ``.npz`` or ``.npy`` file to write the expert load to, int64 [steps, L, E].
        replica_choice: which copy of an expert a token takes, see `vllm_ascend_moe.core.replicas`; None for
            ``weighted`` where there are weights, else ``rank_offset``.
        replica_weights_path: each copy's share of its expert's tokens, as ``expert-maps weights`` writes them, for
            the placement that is served, which stays.
        load_collection_phase: whose tokens are counted: ``prefill`` those of prompts, ``decode`` those
            generated.
        step_interval: steps between two rearrangements; None for vLLM's ``eplb_config``, or vllm-ascend's. Beside
            vllm-ascend they hold the window, its planning and a step for each layer that moves.
        window_size: steps of load that a rearrangement looks back on; None as above.
        record_interval: steps between two writes of the record; a clean stop and SIGTERM write too.
        log_balancedness: whether vLLM logs the balancedness; None for vLLM's ``eplb_config``.
        log_balancedness_interval: steps between two such lines; None for vLLM's ``eplb_config``.
        record_at_start: whether recording begins with the server, and not when it is asked to.
        metrics: whether vLLM's ``/metrics`` shows the plugin's, see `vllm_ascend_moe.core.metric_table`.
    """

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        policies = (*POLICY_NAMES, VLLM_POLICY)
        if self.policy is not None and self.policy not in policies:
            msg = f"policy is {self.policy!r}; expected one of {', '.join(policies)}{_nearest(self.policy, policies)}"
            raise ValueError(msg)
        if self.max_moves is not None and (self.policy or DEFAULT_POLICY) != "balanced":
            msg = f"max_moves is {self.max_moves} with the policy {self.policy!r}; expected it with 'balanced' only"
            raise ValueError(msg)
        if self.expert_map_path is not None and self.layout is not None:
            msg = (
                f"layout is {self.layout!r} and expert_map_path is {self.expert_map_path!r}; expected one of "
                "them: the file says where every expert sits"
            )
            raise ValueError(msg)
        weighted = self.replica_weights_path is not None
        if self.replica_choice is not None and weighted != (self.replica_choice == "weighted"):
            found = "given" if weighted else "missing"
            msg = (
                f"replica_weights_path is {found} with the replica_choice {self.replica_choice!r}; expected it "
                "with 'weighted', and with no other"
            )
            raise ValueError(msg)
        if weighted and self.dynamic:
            msg = "replica_weights_path is given and dynamic is true; expected false: weights hold for one placement"
            raise ValueError(msg)
        if self.record_path is not None and PurePath(self.record_path).suffix not in _RECORD_SUFFIXES:
            msg = f"record_path is {self.record_path!r}; expected a name that ends in {' or '.join(_RECORD_SUFFIXES)}"
            raise ValueError(msg)
        return self

    def changed(self, **changes: object) -> Settings:
        """Return them with some changed, validated as if they had been given so."""
        return read_settings({**self.model_dump(), **changes})

    @property
    def choice(self) -> ReplicaChoiceName:
        """The replica choice with its default filled in."""
        if self.replica_choice is not None:
            return self.replica_choice
        return "rank_offset" if self.replica_weights_path is None else "weighted"


_T = TypeVar("_T", bound=_Options)


def read_settings(config: object = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Validate what was given; an option of the config wins over its environment variable.

    Args:
        config: the object under ``expert_maps`` in vLLM's additional config; None for none.
        environ: environment variables; None to look at none.

    Raises:
        SettingsError: see the class.
    """
    if config is None:
        config = {}
    if not isinstance(config, Mapping):
        msg = (
            f"{CONFIG_KEY} in the additional config is {config!r}; expected an object, {{}} for the defaults"
        )
        raise SettingsError(msg)
    given = _drop_unset(config)
    from_environ = {
        name: value
        for name, value in _read_environ(environ or {}).items()
        if name not in given and _RIVALS.get(name, name) not in given
    }
    # The environment holds strings; the config is JSON, where "4" is not a number.
    read = _validate(_Options, from_environ, strict=False, prefix=ENV_PREFIX)
    merged = {**read.model_dump(include=set(from_environ)), **given}
    return _validate(Settings, merged, strict=True, prefix=f"{CONFIG_KEY}.")


def _drop_unset(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out null where that is the default, and empty paths; what does not exist stays, to be refused."""
    unset = {name for name, option in Settings.model_fields.items() if option.default is None}
    paths = {name for name in unset if name.endswith("_path")}
    return {
        name: value
        for name, value in config.items()
        if not (value is None and name in unset) and not (_is_unset(value) and name in paths)
    }


def _validate(kind: type[_T], values: Mapping[str, Any], *, strict: bool, prefix: str) -> _T:
    known = kind.model_fields
    for option in values:
        if option not in known:
            msg = (
                f"{prefix}{printable(str(option), _LONGEST_NAME)} is not an option; expected one of {', '.join(known)}"
                f"{_nearest(str(option), known)}"
            )
            raise SettingsError(msg)
    try:
        return kind.model_validate(dict(values), strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            msg = f"{CONFIG_KEY}: {first['ctx']['error']}"
            raise SettingsError(msg) from error
        option = str(first["loc"][0])
        expected = first["msg"].removeprefix("Input should be ")
        shown = prefix + (option.upper() if prefix == ENV_PREFIX else option)
        msg = f"{shown} is {first['input']!r:.200}; expected {expected}"
        raise SettingsError(msg) from error


def _read_environ(environ: Mapping[str, str]) -> dict[str, str]:
    found = {}
    known = {ENV_PREFIX + option.upper(): option for option in Settings.model_fields}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable == ENV_ENABLED or value == "":
            continue
        if variable not in known:
            shown = printable(variable, _LONGEST_NAME)
            msg = f"{shown} is not an option; expected one of {', '.join(known)}{_nearest(variable, known)}"
            raise SettingsError(msg)
        found[known[variable]] = value
    return found


def read_flag(name: str, value: str | None) -> bool:
    """Read a boolean environment variable; unset and empty are false.

    Raises:
        SettingsError: it is neither.
    """
    text = (value or "0").strip().lower()
    if text not in _TRUE | _FALSE:
        msg = f"{name} is {value!r}; expected 1 or 0"
        raise SettingsError(msg)
    return text in _TRUE


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f". Did you mean {matches[0]!r}?" if matches else ""


def describe(settings: Settings) -> str:
    """Name where a placement comes from and whether it stays."""
    layout = settings.layout or ("ring" if settings.num_redundant_experts else "linear")
    source = settings.expert_map_path or f"layout {layout}"
    redundant = settings.num_redundant_experts or 0
    return f"{source} ({redundant} redundant, {'dynamic' if settings.dynamic else 'static'})"


__all__ = ["Settings", "SettingsError", "read_flag", "read_settings"]
