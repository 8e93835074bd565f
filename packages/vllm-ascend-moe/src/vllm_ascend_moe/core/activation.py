# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether the plugin is active, and the one line by which every process says so."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_ascend_moe._log import logger
from vllm_ascend_moe._version import __version__
from vllm_ascend_moe.core.settings import (
    CONFIG_KEY,
    ENV_ENABLED,
    ENV_PREFIX,
    Settings,
    SettingsError,
    read_flag,
    read_settings,
)

# The processes that have said whether they are active; a forked child says so again.
said_in: set[int] = set()

# The plugin's worker extension: a configuration that names it was made by an active front end.
REPORT = "vllm_ascend_moe.report.WorkerReport"


class AdditionalConfig(dict[str, Any]):
    """vLLM's additional config, and what the process that reads command line and environment leaves to the others.

    That is pickled and copied with it, but is no key of it: vllm-ascend refuses keys that it does not know, and vLLM
    decides by them whether a compiled model may be used again. vLLM's configuration itself takes no further attribute.

    Attributes:
        resolved: see `leave_resolved`; plain values.
    """

    resolved: dict[str, Any]


@dataclass(frozen=True)
class Activation:
    """What one process knows of the plugin.

    Attributes:
        settings: None where the plugin is inactive.
        reason: why it is inactive, or by what it is active.
        digest: of the placement that the front end read; None in the front end itself.
        backend: what workers serve by, as the front end has decided by the platform and the arguments that it was
            given; see `vllm_ascend_moe.backends.interface.Front`.
        metrics_folder: where workers write metrics, as the front end has made it; None where it has not.
    """

    settings: Settings | None
    reason: str
    digest: str | None = None
    backend: str = ""
    metrics_folder: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether the plugin serves."""
        return self.settings is not None


def as_object(additional_config: object) -> Mapping[str, Any]:
    """Return vLLM's additional config as the object that it must be; an empty one for none.

    Raises:
        SettingsError: it is something else.
    """
    given = additional_config or {}
    if not isinstance(given, Mapping):
        msg = f"the additional config is a {type(given).__name__}; expected an object, to which the plugin adds its own"
        raise SettingsError(msg)
    return given


def leave_resolved(vllm_config: Any, activation: Activation, digest: str | None) -> None:
    """Leave to every other process of this engine what the front end has decided.

    Args:
        vllm_config: vLLM's, complete; it is handed to the others.
        activation: the front end's.
        digest: of the placement; None where there is none.

    Raises:
        SettingsError: its additional config is of a kind that carries nothing.
    """
    settings = None if activation.settings is None else activation.settings.model_dump()
    config = AdditionalConfig(as_object(vllm_config.additional_config))
    config.resolved = {
        "settings": settings,
        "digest": digest,
        "reason": activation.reason,
        "backend": activation.backend,
        "metrics_folder": activation.metrics_folder,
    }
    vllm_config.additional_config = config


def read_activation(additional_config: object, environ: Mapping[str, str] | None = None) -> Activation:
    """Decide whether the plugin is active: by an ``expert_maps`` in the config, or by the environment.

    Args:
        additional_config: vLLM's.
        environ: None for this process's.

    Raises:
        SettingsError: it is active, with options that are not valid.
    """
    environ = os.environ if environ is None else environ
    config = additional_config if isinstance(additional_config, Mapping) else {}
    if CONFIG_KEY in config:
        return Activation(
            read_settings(config[CONFIG_KEY], environ), f"{CONFIG_KEY} is in the additional config"
        )
    if read_flag(ENV_ENABLED, environ.get(ENV_ENABLED)):
        return Activation(read_settings(None, environ), f"{ENV_ENABLED} is set")
    reason = f"{CONFIG_KEY} is not in the additional config and {ENV_ENABLED} is not 1"
    ignored = sorted(name for name in environ if name.startswith(ENV_PREFIX) and name != ENV_ENABLED)
    if ignored:
        reason += f" (so {', '.join(ignored)} {'has' if len(ignored) == 1 else 'have'} no effect)"
    return Activation(None, reason)


def read_resolved(vllm_config: Any, environ: Mapping[str, str] | None = None) -> Activation:
    """Return what the front end has decided; no other process decides by itself, or they might differ.

    Args:
        vllm_config: vLLM's.
        environ: only for the reason; None for this process's.

    Raises:
        SettingsError: the plugin is asked for, but no front end has seen this configuration.
    """
    if isinstance(vllm_config.additional_config, AdditionalConfig):
        resolved = vllm_config.additional_config.resolved
        settings = None if resolved["settings"] is None else Settings.model_validate(resolved["settings"])
        told = {name: resolved[name] for name in ("reason", "digest", "backend", "metrics_folder")}
        return Activation(settings, **told)
    config = vllm_config.additional_config if isinstance(vllm_config.additional_config, Mapping) else {}
    extension = getattr(vllm_config.parallel_config, "worker_extension_cls", None)
    for found, what in ((CONFIG_KEY in config, CONFIG_KEY), (extension == REPORT, REPORT)):
        if found:
            msg = (
                f"{what} is in a configuration that was made, or made anew, without the plugin; expected one made by "
                "vLLM's EngineArgs, after vLLM has loaded its plugins, and passed on as it is"
            )
            raise SettingsError(msg)
    environ = os.environ if environ is None else environ
    if environ.get(ENV_ENABLED):
        return Activation(None, f"the front end is inactive, so {ENV_ENABLED} has no effect here")
    return read_activation({}, environ)


def versions() -> dict[str, str | None]:
    """Return the versions that matter, None where a distribution is not installed."""
    names = ("vllm", "torch", "torch-npu", "vllm-ascend", "expert-maps")
    found = {name: _version(name) for name in names}
    # vLLM's community builds carry metadata of another name.
    found["vllm"] = found["vllm"] or vllm_version()
    return found


def vllm_version() -> str | None:
    """Return vLLM's own word of its version, without importing more of it than that; None without vLLM."""
    try:
        from vllm.version import __version__ as version
    except ImportError:
        return None
    return str(version)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def log_active(where: str, device: str, placement: str, digest: str | None) -> None:
    """Say what this process serves."""
    installed = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    logger.info(
        "vllm-ascend-moe %s active in %s: device %s, placement %s, digest %s, %s",
        __version__,
        where,
        device,
        placement,
        digest[:12] if digest else "none",
        installed,
    )


def log_inactive(activation: Activation) -> None:
    """Say why this process does nothing."""
    logger.info("vllm-ascend-moe %s inactive: %s", __version__, activation.reason)


def say_inactive(activation: Activation) -> None:
    """Say once in this process that the plugin does nothing here."""
    if os.getpid() not in said_in:
        said_in.add(os.getpid())
        log_inactive(activation)


__all__ = [
    "REPORT",
    "Activation",
    "SettingsError",
    "as_object",
    "leave_resolved",
    "log_active",
    "log_inactive",
    "read_activation",
    "read_resolved",
    "said_in",
    "say_inactive",
    "versions",
    "vllm_version",
]
