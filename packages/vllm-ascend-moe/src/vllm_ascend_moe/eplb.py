# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`init_eplb_config`: the one place from which a layer gets its maps.

Every map is derived from one placement, which is read from a map file or generated. Importing this module
loads neither vLLM nor torch_npu.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expert_maps import FormatError, Placement, generate_placement
from expert_maps.validation import as_count
from vllm_ascend_moe._eplb_config import EplbConfigError, get_setting, read_eplb_config, read_moe_config
from vllm_ascend_moe._log import logger
from vllm_ascend_moe._served_map import read_expert_map, read_served_map

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from expert_maps import LayoutName
    from vllm_ascend_moe._eplb_config import MoEConfig


@dataclass(frozen=True, eq=False)
class EplbMaps:
    """What one MoE layer on one rank needs; all tensors are int32 on the CPU.

    Attributes:
        expert_map: [E], logical expert → local slot on this rank, −1 where absent; None without expert
            parallelism.
        log2phy: [E], logical expert → the one physical expert that this rank sends to; None without
            expert parallelism or without EPLB.
        num_redundant_experts: P − E of this layer, over all ranks.
        global_expert_map: [R, E], `expert_map` of every rank; None without expert parallelism.
    """

    expert_map: torch.Tensor | None
    log2phy: torch.Tensor | None
    num_redundant_experts: int
    global_expert_map: torch.Tensor | None


def init_eplb_config(
    eplb_config: object,
    layer_id: int,
    moe_config: object,
    *,
    layout: LayoutName = "ring",
    is_draft: bool = False,
) -> EplbMaps:
    """Derive one MoE layer's maps: placement → expert map → log2phy.

    | settings | placement | redundancy | log2phy |
    |---|---|---|---|
    | ``ep_size`` 1 | none: the maps are None | 0 | None |
    | a map file | the file's row ``layer_id`` | the file's | yes |
    | a map file, ``layer_id`` = its number of layers (draft layer), or ``is_draft`` | ``layout`` | the file's | yes |
    | dynamic EPLB or recording | ``layout`` | as configured | yes |
    | none of these | ``linear``, as vLLM's | 0 | None |

    Of an expert's n copies a rank sends to copy ``ep_rank % n``; where ``moe_config.tp_size`` is above 1,
    to ``(tp_rank + ep_rank // tp_size + expert) % n``.

    Args:
        eplb_config: an object (or mapping) with ``expert_map_path`` (str or path), ``dynamic_eplb``
            (bool), ``num_redundant_experts`` (int, over all ranks) and ``expert_map_record_path``; an
            absent attribute, or None for all of it, means None, False, 0 and None.
        layer_id: index of the MoE layer, dense layers not counted; draft (MTP) layers follow.
        moe_config: an object (or mapping) with ``num_experts`` (E, logical, required where there is
            expert parallelism), ``ep_size`` (1), ``ep_rank`` (0), ``tp_size`` (1) and ``tp_rank``
            (``ep_rank % tp_size``); in brackets what an absent attribute means.
        layout: where experts and copies stand without a file: ``ring``, or another by name.
        is_draft: whether the layer is a draft model's, for which a map file has no rows, whatever its index.

    Returns:
        The maps.

    Raises:
        EplbConfigError: a setting has the wrong type or value, or contradicts the map file.
        FormatError: the map file is absent, unreadable or of another schema.
        PlacementError: the map file's slots are no valid placement; every violation is listed.
        LayoutError: the redundancy does not divide by the ranks; the nearest that do are named.
    """
    eplb = read_eplb_config(eplb_config)
    layer = as_count("layer_id", layer_id, 0, error=EplbConfigError)
    ep_size = as_count("ep_size", get_setting(moe_config, "ep_size", 1), 1, error=EplbConfigError)
    if ep_size == 1:
        if eplb.expert_map_path is not None or eplb.is_on:
            logger.warning("ep_size is 1: there is no expert parallelism, so EPLB settings are ignored")
        return EplbMaps(None, None, 0, None)
    moe = read_moe_config(moe_config, ep_size)
    if eplb.expert_map_path is not None:
        placement, row = _from_file(
            eplb.expert_map_path, eplb.num_redundant_experts, None if is_draft else layer, moe, layout
        )
    else:
        redundant = eplb.num_redundant_experts if eplb.is_on else 0
        name = layout if eplb.is_on else "linear"
        placement, row = _default_placement(name, moe.num_experts, ep_size, redundant), 0
    log2phy = None
    if eplb.is_on or eplb.expert_map_path is not None:
        log2phy = placement.log2phy(row, moe.ep_rank, tp_size=moe.tp_size, tp_rank=moe.tp_rank)
    global_expert_map = placement.global_expert_map(row)
    return EplbMaps(
        expert_map=_tensor(global_expert_map[moe.ep_rank]),
        log2phy=None if log2phy is None else _tensor(log2phy),
        num_redundant_experts=placement.num_redundant_experts,
        global_expert_map=_tensor(global_expert_map),
    )


def _from_file(
    path: str, num_redundant_experts: int, layer: int | None, moe: MoEConfig, layout: str
) -> tuple[Placement, int]:
    """Return a placement and the row in it that is this layer's; None is a draft model's."""
    placement = read_expert_map(path, moe.num_experts, moe.ep_size, num_redundant_experts)
    if layer is not None and layer < placement.num_layers:
        return placement, layer
    if layer is not None and layer > placement.num_layers:
        msg = (
            f"layer_id is {layer}; expected at most {placement.num_layers}: {path} has "
            f"{placement.num_layers} layers, and the next one is the draft layer"
        )
        raise EplbConfigError(msg)
    return (
        _default_placement(layout, moe.num_experts, moe.ep_size, placement.num_redundant_experts),
        0,
    )


@functools.lru_cache(maxsize=8)
def _default_placement(layout: str, num_experts: int, ep_size: int, redundant: int) -> Placement:
    return generate_placement(
        layout, num_experts=num_experts, ep_size=ep_size, num_redundant_experts=redundant
    )


def _tensor(array: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(array.copy())  # a placement's arrays are read-only, tensors are not


__all__ = [
    "EplbConfigError",
    "EplbMaps",
    "FormatError",
    "init_eplb_config",
    "read_expert_map",
    "read_served_map",
]
