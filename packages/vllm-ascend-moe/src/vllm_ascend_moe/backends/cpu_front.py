# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The front on a CPU, where vLLM refuses EPLB as an argument; `backends.vllm_cpu` imports vLLM, this does not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.backends.eplb_front import EplbFront
from vllm_ascend_moe.hooks import table
from vllm_ascend_moe.npu_ops.kernels import no_kernels

if TYPE_CHECKING:
    from vllm_ascend_moe.backends.interface import Facts
    from vllm_ascend_moe.core.settings import Settings
    from vllm_ascend_moe.core.sources import PlacementSource


class CpuFront(EplbFront):
    """vLLM's EPLB, switched on once vLLM has made its configuration without it."""

    kind = "cpu"
    serves = "the plugin's router and experts"
    backend = "vllm_cpu.VllmCpu"
    records_alone = True
    more_hooks = table.CPU

    def __init__(self) -> None:
        """Know of no EPLB yet."""
        self._eplb_config: Any = None

    @staticmethod
    def is_for(platform: Any) -> bool:
        """Take vLLM's CPU build; see `Front`."""
        return bool(platform.is_cpu())

    def facts(self) -> Facts:
        """Say whether kernels serve; see `Front`."""
        facts = super().facts()
        lacking = no_kernels()
        facts.kernels = "compiled by Numba" if lacking is None else "none: plain torch serves"
        if lacking is not None:
            facts.notes.insert(0, f"without kernels a CPU serves more slowly: {lacking}")
        return facts

    def settle(self, settings: Settings) -> Settings:
        """Take all: the plugin's router tells the phases; see `Front`."""
        return settings

    def arguments(
        self, settings: Settings, source: PlacementSource, engine_args: Any, model_config: Any
    ) -> dict[str, object]:
        """Keep what vLLM would refuse for `complete`; see `Front`."""
        changes = super().arguments(settings, source, engine_args, model_config)
        if not changes["enable_eplb"]:
            return changes
        # The asynchronous worker needs a device with streams. This communicator takes the CPU's process group
        # for tensors on a CPU; the one for gloo stages through an accelerator.
        found: Any = changes["eplb_config"]
        self._eplb_config = replace(found, use_async=False, communicator="torch_nccl")
        return {"enable_eplb": False, "eplb_config": type(found)()}

    def complete(self, config: Any) -> None:
        """Switch EPLB on; see `Front`."""
        if self._eplb_config is not None:
            config.parallel_config.eplb_config = self._eplb_config
            config.parallel_config.enable_eplb = True


__all__ = ["CpuFront"]
