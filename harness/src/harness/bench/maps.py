# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How long all maps of a model take, beside the loops that people write for it.

python -m harness.bench.maps [--record FILE]
"""

from __future__ import annotations

import statistics
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from expert_maps import Placement, plan
from harness.record import history
from harness.record.tables import Sheet, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Maps = tuple[NDArray[np.int32], NDArray[np.int32]]

# DeepSeek-V3's shape.
_LAYERS, _EXPERTS, _RANKS, _SLOTS = 58, 256, 64, 320
_NAME = f"all maps, {_LAYERS} layers x {_EXPERTS} experts, {_SLOTS} slots on {_RANKS} ranks"


def vectorised(slots: NDArray[np.int32]) -> Maps:
    """Validate a placement and derive expert_map and log2phy of every layer and rank, [L, R, E] each."""
    placement = Placement(slots, _RANKS, num_logical_experts=_EXPERTS)
    return placement.global_expert_map(), placement.global_log2phy()


def per_element(slots: NDArray[np.int32]) -> Maps:
    """Fill the same maps one element at a time, from lists of each expert's slots built once a layer."""
    per_rank = _SLOTS // _RANKS
    expert_map = np.empty((_LAYERS, _RANKS, _EXPERTS), dtype=np.int32)
    log2phy = np.empty((_LAYERS, _RANKS, _EXPERTS), dtype=np.int32)
    for layer in range(_LAYERS):
        row = slots[layer].tolist()
        copies: list[list[int]] = [[] for _ in range(_EXPERTS)]
        for slot, expert in enumerate(row):
            copies[expert].append(slot)
        for rank in range(_RANKS):
            local = row[rank * per_rank : (rank + 1) * per_rank]
            for expert in range(_EXPERTS):
                expert_map[layer, rank, expert] = local.index(expert) if expert in local else -1
                log2phy[layer, rank, expert] = copies[expert][rank % len(copies[expert])]
    return expert_map, log2phy


def per_rank_as_today(slots: NDArray[np.int32]) -> Maps:
    """Do what serving plug-ins do: each rank walks the maps of all ranks to find the copies.

    Only one layer is done, or this would take a minute.
    """
    per_rank = _SLOTS // _RANKS
    expert_map = np.full((1, _RANKS, _EXPERTS), -1, dtype=np.int32)
    for rank in range(_RANKS):
        for slot in range(per_rank):
            expert_map[0, rank, slots[0, rank * per_rank + slot]] = slot
    log2phy = np.empty((1, _RANKS, _EXPERTS), dtype=np.int32)
    for rank in range(_RANKS):
        copies: dict[int, list[int]] = {}
        for other in range(_RANKS):
            for expert in range(_EXPERTS):
                slot = expert_map[0, other, expert].item()
                if slot != -1:
                    copies.setdefault(expert, []).append(slot + other * per_rank)
        for expert in range(_EXPERTS):
            log2phy[0, rank, expert] = copies[expert][rank % len(copies[expert])]
    return expert_map, log2phy


def _median_ms(function: Callable[[NDArray[np.int32]], Maps], slots: NDArray[np.int32], times: int) -> float:
    return 1e3 * statistics.median(timeit.repeat(lambda: function(slots), number=1, repeat=times))


def measure() -> dict[str, object]:
    """Check that all three agree, then time them; milliseconds and ratios by name."""
    load = np.random.default_rng(0).lognormal(size=(_LAYERS, _EXPERTS))
    slots = plan(load, num_physical_experts=_SLOTS, ep_size=_RANKS).placement.physical_to_logical
    ours = vectorised(slots)
    for other, layers in ((per_element(slots), _LAYERS), (per_rank_as_today(slots), 1)):
        for mine, theirs in zip(ours, other, strict=True):
            np.testing.assert_array_equal(mine[:layers], theirs)
    fast = _median_ms(vectorised, slots, 51)
    loop = _median_ms(per_element, slots, 5)
    today = _median_ms(per_rank_as_today, slots, 3) * _LAYERS
    return {
        "vectorised_median_ms": round(fast, 3),
        "per_element_loop_median_ms": round(loop, 1),
        "per_rank_loop_median_ms": round(today, 1),
        "per_element_loop_ratio": round(loop / fast, 1),
        "per_rank_loop_ratio": round(today / fast, 1),
        "per_rank_loop_note": "one layer timed, multiplied by 58",
    }


def main(
    record: Annotated[Path | None, typer.Option("--record", help="Append the result to this file.")] = None,
) -> None:
    """Time the derived maps against the loops, after checking that all agree."""
    result = measure()
    rows = [["expert_maps, validation included", str(result["vectorised_median_ms"]), "1"]]
    for name, label in (
        ("per_element_loop", "Python loop over layer, rank, expert"),
        ("per_rank_loop", "Python loop as in serving plug-ins"),
    ):
        rows.append([label, str(result[f"{name}_median_ms"]), str(result[f"{name}_ratio"])])
    show(Sheet(_NAME, "", ["how", "median, ms", "ratio"], rows))
    history.keep(record, "maps", _NAME, result)


if __name__ == "__main__":
    typer.run(main)
