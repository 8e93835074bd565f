# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether the plugin is active, and the one line by which every process says so."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_ascend_moe import __version__
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.settings import (
    CONFIG_KEY,
    ENV_ENABLED,
    ENV_PREFIX,
    Settings,
    SettingsError,
    read_flag,
    read_settings,
)

# Under this key the process that reads command line and environment leaves to the others what it found there.
RESOLVED_KEY = "expert_maps_resolved"


@dataclass(frozen=True)
class Activation:
    """What one process knows of the plugin.

    Attributes:
        settings: None where the plugin is inactive.
        reason: why it is inactive, or by what it is active.
        digest: of the placement that the front end read; None in the front end itself.
    """

    settings: Settings | None
    reason: str
    digest: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether the plugin serves."""
        return self.settings is not None

    def resolved(self, digest: str | None) -> dict[str, Any]:
        """Return what the other processes need, for vLLM's additional config: plain JSON."""
        settings = None if self.settings is None else self.settings.model_dump()
        return {"settings": settings, "digest": digest, "reason": self.reason}


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
    if RESOLVED_KEY in config:
        resolved = config[RESOLVED_KEY]
        settings = None if resolved["settings"] is None else Settings.model_validate(resolved["settings"])
        return Activation(settings, resolved["reason"], resolved["digest"])
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


def read_resolved(additional_config: object, environ: Mapping[str, str] | None = None) -> Activation:
    """Return what the front end has decided; no other process decides by itself, or they might differ.

    Args:
        additional_config: vLLM's.
        environ: only for the reason; None for this process's.

    Raises:
        SettingsError: ``expert_maps`` is there, but no front end has seen it.
    """
    config = additional_config if isinstance(additional_config, Mapping) else {}
    if RESOLVED_KEY in config:
        return read_activation(config)
    if CONFIG_KEY in config:
        msg = (
            f"{CONFIG_KEY} is in the additional config of a configuration that was made without the plugin; expected "
            "one made by vLLM's EngineArgs, after vLLM has loaded its plugins"
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


__all__ = [
    "RESOLVED_KEY",
    "Activation",
    "SettingsError",
    "log_active",
    "log_inactive",
    "read_activation",
    "read_resolved",
    "versions",
    "vllm_version",
]
