# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which of the plugin's ways to serve the platform takes."""

from __future__ import annotations

from typing import Literal

from vllm_ascend_moe.hooks.wrapping import UpstreamError

# cpu: the plugin's router and experts. gpu: vLLM's kernels, with the plugin's placement, policy, recording and
# replica choice. ascend: vllm-ascend's layer and its runner V1, with the plugin's maps.
Kind = Literal["cpu", "gpu", "ascend"]


def platform_kind() -> Kind:
    """Name the way, by vLLM's current platform.

    Raises:
        UpstreamError: a platform that the plugin does not know.
    """
    from vllm.platforms import current_platform

    if type(current_platform).__module__.startswith("vllm_ascend"):
        return "ascend"
    if current_platform.is_cpu():
        return "cpu"
    if current_platform.is_cuda_alike() or current_platform.is_xpu():
        return "gpu"
    msg = (
        f"the platform is {current_platform.device_type}; expected a CPU, CUDA, ROCm or XPU, or an NPU with "
        "vllm-ascend"
    )
    raise UpstreamError(msg)
