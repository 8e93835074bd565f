# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Beside vllm-ascend: its platform and layer stay in charge, and its maps come from the plugin's placement.

Not run on an NPU. What is relied on is checked against vllm-ascend's released wheels.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from expert_maps import Placement
from vllm_ascend_moe import upstream
from vllm_ascend_moe.eplb import EplbConfigError, init_eplb_config

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from vllm_ascend_moe.settings import Settings

# vllm-ascend's names; its heat is collected and its algorithm run by intervals of its own.
_STAGE = "eplb_heat_collection_stage"
_STAGE_SINCE = Version("0.23")


def ascend_options(settings: Settings, engine_args: Any) -> dict[str, Any]:
    """Return vllm-ascend's ``eplb_config`` for the plugin's settings, over what the user gave there.

    Raises:
        EplbConfigError: an option has no counterpart in vllm-ascend.
    """
    without = {
        "layout": settings.layout not in {None, "linear", "ring"},
        "policy": settings.policy is not None,
        "max_moves": settings.max_moves is not None,
        "replica_choice": settings.choice != "rank_offset" or settings.replica_choice is not None,
        "log_balancedness": settings.log_balancedness is not None,
        "log_balancedness_interval": settings.log_balancedness_interval is not None,
    }
    unknown = [name for name, given in without.items() if given]
    if unknown:
        msg = (
            f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} given; expected none of them beside "
            "vllm-ascend, whose layer chooses copies and plans by itself (its options: eplb_config in the "
            "additional config)"
        )
        raise EplbConfigError(msg)
    options = dict((engine_args.additional_config or {}).get("eplb_config") or {})
    if settings.expert_map_path is not None:
        options["expert_map_path"] = settings.expert_map_path
    elif settings.num_redundant_experts and not settings.dynamic:
        msg = (
            f"num_redundant_experts is {settings.num_redundant_experts} without a map; expected an expert_map_path "
            "or dynamic: vllm-ascend makes copies only with one of them"
        )
        raise EplbConfigError(msg)
    if settings.record_path is not None:
        msg = (
            f"record_path is {settings.record_path}; expected none beside vllm-ascend, which records by its own "
            "expert_map_record_path"
        )
        raise EplbConfigError(msg)
    if settings.window_size is not None:
        options["expert_heat_collection_interval"] = settings.window_size
    if settings.step_interval is not None:
        options["algorithm_execution_interval"] = settings.step_interval
    if settings.load_collection_phase != "all":
        found = upstream.vllm_ascend_version()
        if found is None or Version(found).release < _STAGE_SINCE.release:
            msg = (
                f"load_collection_phase is {settings.load_collection_phase} with vllm-ascend {found}; expected "
                f"vllm-ascend {_STAGE_SINCE} or later, or 'all'"
            )
            raise EplbConfigError(msg)
        options[_STAGE] = settings.load_collection_phase
    if settings.dynamic:
        options["dynamic_eplb"] = True
        options["num_redundant_experts"] = settings.num_redundant_experts
        # vllm-ascend insists on the variable beside the option; the workers inherit it.
        os.environ.setdefault("DYNAMIC_EPLB", "true")
    return options


# What each layer of this process was given, by its index: slot of each expert on each rank, [R, E].
_served: dict[int, torch.Tensor | None] = {}


def served_placement(num_layers: int | None = None) -> Placement | None:
    """Return the placement that the layers were built with; None before there are layers, or with dynamic EPLB.

    vllm-ascend then moves experts by itself.

    Args:
        num_layers: only the first so many, for draft layers follow; None for all.
    """
    found = [_served[layer] for layer in sorted(_served)][:num_layers]
    maps = [slots for slots in found if slots is not None]
    if not maps or len(maps) < len(found) or len({slots.shape for slots in maps}) > 1:
        return None
    # Those that a rank does not hold have −1 and sort first: what is left are its experts in the order of its slots.
    held = [[of_rank.argsort()[int((of_rank < 0).sum()) :].tolist() for of_rank in slots] for slots in maps]
    return Placement.from_rank_lists(held, num_logical_experts=maps[0].shape[1])


def around_init_eplb_config(
    original: Callable[..., Any],  # noqa: ARG001 - replaced
    eplb_config: Any,
    layer_id: int,
    moe_config: Any,
    mix_placement: bool = False,
    num_shared_experts: int = 1,  # noqa: ARG001 - vllm-ascend's
    tp_size: int | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, int]:
    """Answer vllm-ascend's `init_eplb_config` from one placement.

    Returns:
        global_expert_map [R, E], expert_map [E], log2phy [E] on the NPU, and the redundancy; as vllm-ascend's.

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
    # The record is vllm-ascend's own business; it implies dynamic EPLB there as here.
    maps = init_eplb_config(eplb_config, layer_id, sizes)
    log2phy = maps.log2phy
    if log2phy is not None:
        log2phy = log2phy.to("npu")
    # Without EPLB vllm-ascend has no global map.
    if maps.global_expert_map is not None:
        # What vllm-ascend moves by itself is not known here, whoever told it to.
        _served[layer_id] = None if getattr(eplb_config, "dynamic_eplb", False) else maps.global_expert_map
    everywhere = None if log2phy is None else maps.global_expert_map
    return everywhere, maps.expert_map, log2phy, maps.num_redundant_experts
