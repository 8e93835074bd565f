# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What serves, by platform: a row for each, which names its front; that names the backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.hooks.wrapping import UpstreamError

if TYPE_CHECKING:
    from vllm_ascend_moe.backends.interface import Backend, Front

# A module in this folder, a dot, a class; only the module that is asked for is imported, because some import vLLM.
# The first that is for the platform has it.
FRONTS = (
    "ascend.front_v2.AscendV2Front",
    "ascend.front.AscendFront",
    "cpu_front.CpuFront",
    "eplb_front.EplbFront",
)


def front() -> Front:
    """Return the front of vLLM's current platform.

    Raises:
        UpstreamError: a platform that the plugin does not know.
    """
    from vllm.platforms import current_platform

    for name in FRONTS:
        found: type[Front] = _load(name)
        if found.is_for(current_platform):
            return found()
    msg = (
        f"the platform is {current_platform.device_type}; expected a CPU, CUDA, ROCm or XPU, or an NPU with "
        "vllm-ascend"
    )
    raise UpstreamError(msg)


def backend(name: str) -> type[Backend]:
    """Return a backend's class.

    Args:
        name: as a front has it in `Front.backend`.
    """
    found: type[Backend] = _load(name)
    return found


def _load(name: str) -> Any:
    module, _, cls = name.rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), cls)


__all__ = ["FRONTS", "backend", "front"]
