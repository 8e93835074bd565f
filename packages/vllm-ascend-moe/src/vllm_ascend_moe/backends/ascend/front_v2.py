# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The front beside vllm-ascend's runner V2: vLLM's EPLB, switched on as vllm-ascend has it there."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe import releases
from vllm_ascend_moe.backends.ascend.checks import World, check_served
from vllm_ascend_moe.backends.ascend.front import AscendFront, OfRelease
from vllm_ascend_moe.backends.ascend.options import given_options
from vllm_ascend_moe.backends.eplb_front import EplbFront
from vllm_ascend_moe.backends.interface import Facts
from vllm_ascend_moe.core.settings import VLLM_POLICY, read_flag
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from vllm_ascend_moe.core.settings import Settings
    from vllm_ascend_moe.core.sources import PlacementSource
    from vllm_ascend_moe.hooks.table import Hook

_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
# vllm-ascend's own policy; and vLLM's, whose plans need no statistics of vllm-ascend's, and in whose place the plugin's
# planner is put: by itself it never acts there.
_OWN_POLICY, _PLAIN_POLICY = "stair", "default"
_PHASE = "load_collection_phase"


class AscendV2Front(OfRelease, EplbFront):
    """vLLM's EPLB beside vllm-ascend."""

    kind = "ascend"
    serves = "vllm-ascend's layer and its runner V2, with the plugin's placement, policy, recording and replica choice"
    backend = "ascend_v2.AscendV2"
    # Its tables name every copy; those of V1 one slot for an expert on a rank.
    takes_duplicates = True

    @staticmethod
    def is_for(platform: Any) -> bool:
        """Take vllm-ascend's platform where the environment asks for this runner; see `Front`."""
        return AscendFront.is_for(platform) and read_flag(_RUNNER, os.environ.get(_RUNNER))

    def check_versions(self) -> None:
        """Check the pair, and that the plugin serves by its runner V2; see `Front`."""
        wrapping.check_versions(ascend=True)
        if not self.release.serves_v2:
            known = ", ".join(found.vllm_ascend for found in releases.RELEASES if found.serves_v2)
            msg = (
                f"{_RUNNER} is 1 beside vllm-ascend {self.release.vllm_ascend}; expected its runner V1, or {known}: beside "
                "others the plugin was not tried with V2. Unset it, or leave out expert_maps and VLLM_ASCEND_MOE_ENABLED"
            )
            raise wrapping.UpstreamError(msg)

    def hooks(self) -> tuple[Hook, ...]:
        """Return those beside this release's runner V2; see `Front`."""
        return table.beside_v2(self.release)

    def facts(self) -> Facts:
        """Return the row of the table that applies; see `Front`."""
        row = dict(zip(releases.COLUMNS, releases.row(self.release), strict=True))
        return Facts(release=row, refused=[*self.release.refused_v2, *releases.REFUSED])

    def join(self, settings: Settings, engine_args: Any) -> Settings:
        """Refuse in ``eplb_config`` of the additional config what would have no effect; see `Front`."""
        phase = given_options(engine_args.additional_config).get(_PHASE)
        if phase not in {None, "all"} and settings.policy != VLLM_POLICY:
            msg = (
                f"{_PHASE} is {phase!r} in eplb_config, where rearrangements are planned by expert-maps; expected it with "
                f"policy {VLLM_POLICY!r} only: vllm-ascend's runner V2 tells phases for its own policy only"
            )
            raise EplbConfigError(msg)
        return settings

    def settle(self, settings: Settings) -> Settings:
        """Refuse what V2 does not count or plan, and name the layout that the release starts from; see `Front`."""
        if settings.load_collection_phase != "all":
            msg = (
                f"load_collection_phase is {settings.load_collection_phase}; expected 'all': vllm-ascend's runner V2 tells "
                "phases for its own policy only"
            )
            raise EplbConfigError(msg)
        if settings.policy == VLLM_POLICY:
            self._check_their_policy(settings)
        if settings.num_redundant_experts and settings.expert_map_path is None and settings.layout is None:
            return settings.changed(layout=self.release.layout_v2)
        return settings

    def _check_their_policy(self, settings: Settings) -> None:
        own = ("max_moves", "max_layers", "min_gain", "record_path")
        for name, value in ((name, getattr(settings, name)) for name in own):
            if value is not None:
                msg = (
                    f"{name} is {value}, where vllm-ascend plans by its own policy and statistics; expected it with a policy "
                    f"of expert-maps: leave out policy {VLLM_POLICY!r}"
                )
                raise EplbConfigError(msg)

    def arguments(
        self, settings: Settings, source: PlacementSource, engine_args: Any, model_config: Any
    ) -> dict[str, object]:
        """Refuse what would be served wrongly, and switch vLLM's EPLB on where it is needed; see `Front`."""
        check_served(settings, source, self.release, {}, World.of(engine_args, model_config))
        found = super().arguments(settings, source, engine_args, model_config)
        if not found["enable_eplb"]:
            return found
        config: Any = found["eplb_config"]
        # Beside vllm-ascend it is always asynchronous.
        policy = _OWN_POLICY if settings.policy == VLLM_POLICY else _PLAIN_POLICY
        return {**found, "eplb_config": replace(config, use_async=True, policy=policy)}


__all__ = ["AscendV2Front"]
