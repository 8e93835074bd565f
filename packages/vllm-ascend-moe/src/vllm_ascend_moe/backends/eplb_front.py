# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The front where vLLM's own EPLB state serves: CUDA, ROCm and XPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_ascend_moe.backends.interface import Facts, Front
from vllm_ascend_moe.core.activation import versions
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from vllm_ascend_moe.core.settings import Settings
    from vllm_ascend_moe.core.sources import PlacementSource
    from vllm_ascend_moe.hooks.table import Hook

# Steps that no server lives to see.
_NEVER = 10**9


class EplbFront(Front):
    """vLLM's EPLB, with the plugin's settings over the user's."""

    kind = "gpu"
    serves = "vLLM's kernels, with the plugin's placement, policy, recording and replica choice"
    backend = "vllm_eplb.VllmEplb"
    more_hooks: ClassVar[tuple[Hook, ...]] = ()

    @staticmethod
    def is_for(platform: Any) -> bool:
        """Take every device whose runner makes vLLM's EPLB state; see `Front`."""
        return bool(platform.is_cuda_alike() or platform.is_xpu())

    def check_versions(self) -> None:
        """Check vLLM's; see `Front`."""
        wrapping.check_versions(ascend=False)

    def hooks(self) -> tuple[Hook, ...]:
        """Return those into vLLM's EPLB; see `Front`."""
        return (*table.WATCHED, table.STOP_TIMEOUT, *table.EPLB, *self.more_hooks)

    def facts(self) -> Facts:
        """Note a torch_npu that does not serve; see `Front`."""
        notes = []
        if versions()["torch-npu"]:
            notes.append(f"torch-npu is installed, but vLLM's platform is not Ascend's: {self.kind} serves")
        return Facts(notes=notes)

    def settle(self, settings: Settings) -> Settings:
        """Refuse what vLLM's kernels do not tell; see `Front`."""
        if settings.load_collection_phase != "all":
            msg = (
                f"load_collection_phase is {settings.load_collection_phase}; expected 'all': vLLM's kernels do not tell "
                "prompts from what is generated"
            )
            raise EplbConfigError(msg)
        return settings

    def arguments(
        self, settings: Settings, source: PlacementSource, engine_args: Any, model_config: Any
    ) -> dict[str, object]:
        """Switch vLLM's EPLB on where it is needed; see `Front`."""
        del model_config
        given = engine_args.eplb_config
        if not _needs_eplb_state(settings, given, source):
            return {"enable_eplb": False}
        source.require_even("for experts to be moved and their load to be recorded")
        return {"enable_eplb": True, "eplb_config": _eplb_config(settings, given)}


def _needs_eplb_state(settings: Settings, given: Any, source: PlacementSource) -> bool:
    """Say whether vLLM's EPLB is needed: not for what its expert parallelism does without."""
    logs = given.log_balancedness if settings.log_balancedness is None else settings.log_balancedness
    moves = source.placement.ep_size > 1 and not source.is_linear
    return bool(settings.dynamic or moves or settings.record_path is not None or logs)


def _eplb_config(settings: Settings, given: Any) -> Any:
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
    return replace(given, **changes)


__all__ = ["EplbFront"]
