# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps show`: the maps of one layer and rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps._layers import LayerNames
from expert_maps._words import counted
from expert_maps.cli.mapping import MapOptions
from expert_maps.cli.options import JsonOption, MapArgument, refuse_two_stdins

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from expert_maps.placement import Placement

# Below this many equal steps a run is no shorter than its values.
_MIN_RUN = 3

# Columns of the arrays that are printed in full.
_FULL_WIDTH = 76


def show(
    file: MapArgument,
    layer: Annotated[int, typer.Option("--layer", help="MoE layer, by row from 0.")] = 0,
    rank: Annotated[int, typer.Option("--rank", help="Expert-parallel rank, from 0.")] = 0,
    tp_size: Annotated[
        int, typer.Option("--tp-size", help="Tensor-parallel size, for the choice of replicas.")
    ] = 1,
    compact: Annotated[
        bool, typer.Option("--compact", help="Leave out the full arrays, keep the ranges.")
    ] = False,
    said: MapOptions = MapOptions(),  # noqa: B008 - frozen
    json: JsonOption = False,
) -> None:
    """Show a rank's expert map and log2phy: as ranges to read, and in full to paste into a bug report.

    expert_map is logical expert → local slot, −1 where the expert is not on the rank; log2phy is logical
    expert → the physical expert that the rank sends to.
    """
    from expert_maps.cli.mapping import read_any_map
    from expert_maps.cli.output import print_json, say
    from expert_maps.layered import layer_of

    refuse_two_stdins({"MAP": file, "--model": said.model})
    # Of one layer: where slots differ by layer, counts and physical ids are those of this one.
    found = read_any_map(file, said)
    placement = layer_of(found.placement, layer)
    names = LayerNames(found.layers)
    expert_map = placement.expert_map(0, rank)
    log2phy = placement.log2phy(0, rank, tp_size=tp_size)
    local = placement.local_experts(0, rank)
    if json:
        print_json(
            {
                "layer": layer,
                "model_layer": None if names.numbers is None else names.numbers[layer],
                "ep_rank": rank,
                "ep_size": placement.ep_size,
                "num_logical_experts": placement.num_logical_experts,
                "num_redundant_experts": placement.num_redundant_experts,
                "local_experts": local.tolist(),
                "expert_map": expert_map.tolist(),
                "log2phy": log2phy.tolist(),
            }
        )
        return
    say(
        _lines(placement, names.one(layer), rank, compact=compact, maps=(local, expert_map, log2phy)),
        wrap=True,
    )


def _lines(
    placement: Placement,
    layer: str,
    rank: int,
    *,
    compact: bool,
    maps: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]],
) -> list[str]:
    import numpy as np

    local, expert_map, log2phy = maps
    first = placement.rank_offsets[rank]
    slots = np.arange(len(local))
    experts = np.arange(placement.num_logical_experts)
    physical = f"{first} … {first + len(local) - 1}" if len(local) else "none"
    counts = {
        "ep size": placement.ep_size,
        "num of experts": placement.num_logical_experts,
        "num of redundant experts": placement.num_redundant_experts,
    }
    lines = [
        ", ".join(f"{name}: {count}" for name, count in counts.items()),
        f"{layer}, rank {rank}: {counted(len(local), 'slot')}, physical experts {physical}",
        "",
        f"slots (local slot: logical expert): {ranges(slots, local, ': ')}",
        f"expert_map (logical → local slot): {ranges(experts, expert_map, ' → ')}",
        f"log2phy (logical → physical): {ranges(experts, log2phy, ' → ')}",
    ]
    if not compact:
        lines += [
            "",
            f"Expert mapping (non -1: the local slot) for rank {rank}:",
            *_full(expert_map),
            f"log2phy for rank {rank}:",
            *_full(log2phy),
        ]
    return lines


def _full(values: NDArray[np.int32]) -> list[str]:
    import sys

    import numpy as np

    from expert_maps.cli.output import width_of

    width = min(width_of(sys.stdout) or _FULL_WIDTH, _FULL_WIDTH)
    return np.array2string(values, threshold=len(values) + 1, max_line_width=width).split("\n")


def ranges(keys: NDArray[np.int64], values: NDArray[np.int32], arrow: str) -> str:
    """Write key–value pairs compactly: runs of rising or of equal values become ranges.

    Args:
        keys: consecutive integers [n].
        values: integers [n].
        arrow: what stands between a key and its value.

    Returns:
        For instance ``0 → 16, 1…239 → -1, 240…255 → 0…15``.
    """
    parts: list[str] = []
    start = 0
    while start < len(keys):
        end = start + 1
        step = values[end] - values[start] if end < len(keys) else 0
        if step in {0, 1}:
            while end < len(keys) and values[end] - values[end - 1] == step:
                end += 1
        if end - start < _MIN_RUN:
            end = start + 1
            parts.append(f"{keys[start]}{arrow}{values[start]}")
        else:
            value = f"{values[start]}" if step == 0 else f"{values[start]}…{values[end - 1]}"
            parts.append(f"{keys[start]}…{keys[end - 1]}{arrow}{value}")
        start = end
    return ", ".join(parts) or "none"
