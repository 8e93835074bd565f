# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is installed, what would be active in vLLM, and what would not work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_maps import ExpertMapsError
from vllm_ascend_moe import backends
from vllm_ascend_moe._version import __version__
from vllm_ascend_moe.core.activation import read_activation, versions
from vllm_ascend_moe.core.settings import CONFIG_KEY, ENV_ENABLED, Settings
from vllm_ascend_moe.endpoints import NAME
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_ascend_moe.backends.interface import Front

ENTRY_POINT = "ascend_moe"
_GENERAL, _PLATFORM = "vllm.general_plugins", "vllm.platform_plugins"


@dataclass
class Diagnosis:
    """What the doctor found.

    Attributes:
        versions: distribution → version, None where it is not installed.
        entry_points: group → names of the plugins that are installed in it.
        vllm_plugins: the names that ``VLLM_PLUGINS`` allows; None where it is unset, which allows all.
        device: how the plugin would serve: ``cpu``, ``gpu`` or ``ascend``; None where that is not known.
        release: the row of the table that applies beside vllm-ascend: column → value; None by itself or for an
            unknown pair.
        refused: what the plugin refuses beside that release.
        kernels: where a CPU serves, whether by kernels or by plain torch; None elsewhere.
        state: whether the plugin would be active, and why.
        settings: the options that it would be active with, defaults left out.
        problems: what would not work, each with what to change; empty where all is well.
        notes: what is worth knowing.
    """

    versions: dict[str, str | None]
    entry_points: dict[str, list[str]] = field(default_factory=dict)
    vllm_plugins: list[str] | None = None
    device: str | None = None
    release: dict[str, str] | None = None
    refused: list[str] = field(default_factory=list)
    kernels: str | None = None
    state: str = "inactive"
    settings: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def diagnose(additional_config: object, environ: Mapping[str, str]) -> Diagnosis:
    """Look at this environment as vLLM would.

    Args:
        additional_config: as in vLLM's ``--additional-config``.
        environ: environment variables.
    """
    found = Diagnosis({"vllm-ascend-moe": __version__, **versions()})
    _look_at_plugins(found, environ)
    front = _look_at_vllm(found)
    _look_at_activation(found, additional_config, environ, front)
    return found


def _look_at_plugins(found: Diagnosis, environ: Mapping[str, str]) -> None:
    for group in (_GENERAL, _PLATFORM):
        points = importlib.metadata.entry_points(group=group)
        found.entry_points[group] = sorted({point.name for point in points})
    general, platforms = found.entry_points[_GENERAL], found.entry_points[_PLATFORM]
    if ENTRY_POINT not in general:
        found.problems.append(
            f"the entry point {ENTRY_POINT} is not in {_GENERAL}; install the package (pip install vllm-ascend-moe)"
        )
    if "VLLM_PLUGINS" not in environ:
        return
    allowed = [name for name in environ["VLLM_PLUGINS"].split(",") if name]
    found.vllm_plugins = allowed
    off = sorted({*general, *platforms} - set(allowed))
    if off:
        found.notes.append(
            f"VLLM_PLUGINS is one list for all kinds of plugins, and turns off: {', '.join(off)}"
        )
    needed = [name for name in (ENTRY_POINT, *platforms) if name in off]
    listed = ",".join([*allowed, *needed])
    for name in needed:
        what = "this plugin" if name == ENTRY_POINT else "its platform"
        found.problems.append(
            f"VLLM_PLUGINS turns off {name}, {what}; set VLLM_PLUGINS={listed}, or unset it"
        )


def _look_at_vllm(found: Diagnosis) -> Front | None:
    """Find the device and check the hooks; None where vLLM cannot serve."""
    for module in ("torch", "vllm"):
        if importlib.util.find_spec(module) is None:
            found.problems.append(
                f"{module} is not installed; install it (pip install 'vllm-ascend-moe[vllm]', or on an NPU a pair of "
                "`vllm-ascend-moe releases`)"
            )
            return None
    try:
        front = backends.front()
        found.device = front.kind
        front.check_versions()
    except ExpertMapsError as error:
        found.problems.append(str(error))
        return None
    except (AttributeError, *wrapping.IMPORT_ERRORS) as error:
        # A torch_npu without CANN fails here, in ways of its own.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        found.problems.append(f"vLLM cannot be imported ({type(error).__name__}: {reason})")
        return None
    found.problems.extend(wrapping.problems(front.hooks()))
    facts = front.facts()
    found.release, found.refused, found.kernels = facts.release, facts.refused, facts.kernels
    found.notes.extend(facts.notes)
    return front


def _look_at_activation(
    found: Diagnosis, additional_config: object, environ: Mapping[str, str], front: Front | None
) -> None:
    try:
        activation = read_activation(additional_config, environ)
        if activation.settings is None:
            found.state = f"inactive: {activation.reason}"
            found.notes.append(
                f"to activate it: vllm serve … --additional-config '{{\"{CONFIG_KEY}\": {{}}}}', or {ENV_ENABLED}=1"
            )
            return
        found.settings = activation.settings.model_dump(exclude_defaults=True)
        if front is not None:
            _look_at_record(found, activation.settings)
        _look_at_files(activation.settings.expert_map_path)
    except ExpertMapsError as error:
        found.state = "refused"
        found.problems.append(str(error))
        return
    how = front.serves if front else "nothing, until the problems are solved"
    found.state = f"active: {activation.reason}; {how}"


def _look_at_record(found: Diagnosis, settings: Settings) -> None:
    """Note how the record is asked for over HTTP."""
    if settings.record_path is None or NAME in (found.vllm_plugins or []):
        return
    try:
        has_routes = importlib.util.find_spec("vllm.plugins.endpoint_plugins") is not None
    except ImportError:
        has_routes = False
    if has_routes:
        others = found.vllm_plugins
        if others is None:
            others = sorted({name for group in (_GENERAL, _PLATFORM) for name in found.entry_points[group]})
        found.notes.append(
            "to start, stop and write the record over HTTP, which vLLM wants to be asked for by name: "
            f"VLLM_PLUGINS={','.join([*others, NAME])}, and what else you use"
        )
    else:
        found.notes.append(
            "the record cannot be started, stopped and written over HTTP: this vLLM takes no routes from plugins; "
            "collective_rpc('expert_maps_record') does the same"
        )


def _look_at_files(path: str | None) -> None:
    from vllm_ascend_moe.eplb import read_served_map

    if path is not None:
        read_served_map(path)
