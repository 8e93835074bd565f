# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Beside vllm-ascend: its layer asks one function for its maps, and gets them from the plugin's placement."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from vllm_ascend_moe import releases
from vllm_ascend_moe.eplb import EplbConfigError, EplbMaps, init_eplb_config
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps import LayoutName

# What vllm-ascend's function returns: global_expert_map, expert_map, log2phy, redundancy.
Answer = tuple["torch.Tensor | None", "torch.Tensor | None", "torch.Tensor | None", int]


@dataclass(frozen=True)
class Question:
    """What a layer of vllm-ascend asks for its maps by.

    Attributes:
        eplb_config: vllm-ascend's settings.
        sizes: the layer's counts as they are now; vllm-ascend changes its own object afterwards.
    """

    eplb_config: Any
    sizes: SimpleNamespace

    @classmethod
    def of(
        cls,
        eplb_config: Any,
        moe_config: Any,
        mix_placement: bool = False,
        num_shared_experts: int = 1,  # noqa: ARG003 - vllm-ascend's
        tp_size: int | None = None,
    ) -> Question:
        """Read vllm-ascend's arguments.

        Raises:
            EplbConfigError: shared experts are mixed into the placement, which the plugin's maps do not have.
        """
        if mix_placement:
            msg = "mix_placement is true; expected false: the plugin's maps hold routed experts only"
            raise EplbConfigError(msg)
        sizes = SimpleNamespace(
            num_experts=moe_config.num_experts,
            ep_size=moe_config.ep_size,
            ep_rank=moe_config.ep_rank,
            tp_size=tp_size or 1,
        )
        return cls(eplb_config, sizes)

    def maps(self, layer: int, *, draft: bool = False, layout: LayoutName | None = None) -> EplbMaps:
        """Return the layer's maps, on the CPU.

        Args:
            layer: its index among the MoE layers of its model, over all pipeline stages.
            draft: whether that is a draft model, for which no file has rows.
            layout: where there is no file; None for the release's own.
        """
        release = releases.find(wrapping.vllm_ascend_version())
        layout = layout or ("ring" if release is None else release.layout)
        # The record is vllm-ascend's own business; it implies dynamic EPLB there as here.
        return init_eplb_config(self.eplb_config, layer, self.sizes, layout=layout, is_draft=draft)


def answer(maps: EplbMaps) -> Answer:
    """Return the maps as vllm-ascend's function does, on the devices where its own would be."""
    # Its own are made where the layer is made: one path indexes them with ids that are on the NPU.
    device = torch.get_default_device()
    expert_map = None if maps.expert_map is None else maps.expert_map.to(device)
    # Without EPLB vllm-ascend has no global map.
    if maps.log2phy is None or maps.global_expert_map is None:
        return None, expert_map, None, maps.num_redundant_experts
    return maps.global_expert_map.to(device), expert_map, maps.log2phy.to("npu"), maps.num_redundant_experts


def around_init_eplb_config(
    original: Callable[..., Any],  # noqa: ARG001 - replaced
    eplb_config: Any,
    layer_id: int,
    moe_config: Any,
    mix_placement: bool = False,
    num_shared_experts: int = 1,
    tp_size: int | None = None,
) -> Answer:
    """Answer vllm-ascend's `init_eplb_config` from one placement, by the number that vllm-ascend gives the layer.

    Returns:
        global_expert_map [R, E], expert_map [E], log2phy [E] on the NPU, and the redundancy; as vllm-ascend's.

    Raises:
        EplbConfigError: shared experts are mixed into the placement, which the plugin's maps do not have.
    """
    question = Question.of(eplb_config, moe_config, mix_placement, num_shared_experts, tp_size)
    return answer(question.maps(layer_id))


__all__ = ["Answer", "Question", "answer", "around_init_eplb_config"]
