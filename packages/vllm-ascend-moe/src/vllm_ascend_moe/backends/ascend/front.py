# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The front beside vllm-ascend: what it would serve wrongly is refused, and the rest written as its own options."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe import releases
from vllm_ascend_moe.backends.ascend.checks import World, check_runner, check_served
from vllm_ascend_moe.backends.ascend.options import (
    EPLB_CONFIG,
    ascend_options,
    check_options,
    chooses,
    forget_engine,
    given_options,
    join_given,
    needs_eplb,
    switch_dynamic_on,
)
from vllm_ascend_moe.backends.interface import Facts, Front
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from vllm_ascend_moe.core.settings import Settings
    from vllm_ascend_moe.core.sources import PlacementSource
    from vllm_ascend_moe.hooks.table import Hook
    from vllm_ascend_moe.releases import Release


# vllm-ascend's option for an operator that exchanges tokens and computes in one, and the variable that older releases have.
_FUSED, _FUSED_VARIABLE = "enable_fused_mc2", "VLLM_ASCEND_ENABLE_FUSED_MC2"
_OFF = (None, False, 0, "", "0")


class OfRelease:
    """A front that speaks for a release of vllm-ascend."""

    # But on the path AllGather, where every rank has all tokens: that is checked, and chosen for, by itself.
    splits_tokens = True

    def __init__(self, release: Release | None = None) -> None:
        """Speak for a release of vllm-ascend.

        Args:
            release: None for the one that is installed.
        """
        self._release = release

    @property
    def release(self) -> Release:
        """What the plugin knows of this vllm-ascend.

        Raises:
            UpstreamError: nothing.
        """
        return wrapping.vllm_ascend_release() if self._release is None else self._release


class AscendFront(OfRelease, Front):
    """vllm-ascend's own EPLB, given the plugin's maps."""

    kind = "ascend"
    serves = "vllm-ascend's layer and its runner V1, with the plugin's maps"
    backend = "ascend_v1.AscendV1"

    @staticmethod
    def is_for(platform: Any) -> bool:
        """Take the platform that vllm-ascend brings; see `Front`."""
        return type(platform).__module__.startswith("vllm_ascend")

    def check_versions(self) -> None:
        """Check the pair of vLLM and vllm-ascend; see `Front`."""
        wrapping.check_versions(ascend=True)

    def hooks(self) -> tuple[Hook, ...]:
        """Return those beside this release; see `Front`."""
        return table.beside(self.release)

    def facts(self) -> Facts:
        """Return the row of the table that applies, and what is refused there; see `Front`."""
        release = self.release
        row = dict(zip(releases.COLUMNS, releases.row(release), strict=True))
        return Facts(release=row, refused=[*release.refused, *releases.REFUSED])

    def forget_engine(self) -> None:
        """Take back its switch, and let vllm-ascend read its options anew; see `Front`."""
        forget_engine()

    def join(self, settings: Settings, engine_args: Any) -> Settings:
        """Take the user's ``eplb_config`` as if it had been given to the plugin; see `Front`."""
        check_runner(engine_args)
        return join_given(settings, engine_args.additional_config)

    def settle(self, settings: Settings) -> Settings:
        """Refuse options without a counterpart, and name the layout that the release starts from; see `Front`."""
        check_options(settings, self.release)
        if settings.num_redundant_experts and settings.expert_map_path is None and settings.layout is None:
            # What it starts from is said by name, to every process and in the log.
            return settings.changed(layout=self.release.layout)
        return settings

    def arguments(
        self, settings: Settings, source: PlacementSource, engine_args: Any, model_config: Any
    ) -> dict[str, object]:
        """Refuse what would be served wrongly, and write vllm-ascend's options for the rest; see `Front`."""
        given = engine_args.additional_config
        options = given_options(given)
        fused = given.get(_FUSED, os.environ.get(_FUSED_VARIABLE))
        if chooses(settings) and fused not in _OFF:
            msg = (
                f"{_FUSED} is {fused!r} with replica_choice {settings.choice}; expected one of them: that operator "
                "exchanges tokens by itself, without asking which copy they take"
            )
            raise EplbConfigError(msg)
        check_served(settings, source, self.release, options, World.of(engine_args, model_config))
        # How many every stage has is known where there is one.
        stages = getattr(engine_args, "pipeline_parallel_size", 1)
        if stages > 1 and settings.record_path is not None:
            msg = f"record_path is {settings.record_path} with {stages} pipeline stages; expected one stage: leave it out"
            raise EplbConfigError(msg)
        if source.placement.ep_size == 1:
            # On one rank every layout is the linear one, and there is nothing to switch on.
            settings = settings.changed(layout=None)
        options = ascend_options(settings, options, self.release, source.num_layers if stages == 1 else None)
        if needs_eplb(settings):
            switch_dynamic_on()
        return {"additional_config": {**given, EPLB_CONFIG: options}}


__all__ = ["AscendFront"]
