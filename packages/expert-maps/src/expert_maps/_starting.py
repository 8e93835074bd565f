# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The placement in use, as a start of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import LayoutError
from expert_maps.policies.base import Cluster, Start
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement


def start_from(current: Placement, trace: ExpertLoad, cluster: Cluster, max_moves: int | None) -> Start:
    """Return where a plan starts from, as `plan` is told.

    Raises:
        LayoutError: ``current`` has other counts than are planned for, or ``max_moves`` does not allow to put it right.
    """
    counts = (
        ("num_layers", trace.num_layers),
        ("num_logical_experts", trace.num_experts),
        ("ep_size", cluster.ep_size),
        ("num_physical_experts", cluster.num_physical_experts),
    )
    for name, planned in counts:
        if getattr(current, name) != planned:
            msg = (
                f"{name} of current is {getattr(current, name)}; expected {planned}, as planned "
                "(`rescale` goes from one number of ranks to another)"
            )
            raise LayoutError(msg)
    if not np.array_equal(current.slots_per_rank, cluster.slots_per_rank):
        msg = (
            f"slots_per_rank of current are {current.slots_per_rank.tolist()}; expected "
            f"{cluster.slots_per_rank.tolist()}, as planned"
        )
        raise LayoutError(msg)
    if max_moves is not None:
        max_moves = as_count("max_moves", max_moves, 0, error=LayoutError)
        _refuse_duplicates(current)
    return Start(current.physical_to_logical, cluster.slots_per_rank.astype(np.int32), max_moves)


def _refuse_duplicates(current: Placement) -> None:
    """Refuse a placement whose second copies cannot stay: replacing them is no question of a budget."""
    distinct = (current.global_expert_map() >= 0).sum(axis=2)  # [L, R]
    bad = np.argwhere(distinct < current.slots_per_rank)
    if bad.size:
        layer, rank = bad[0].tolist()
        msg = (
            f"current has an expert twice on rank {rank} in layer {layer}; expected every expert once on a rank "
            "where max_moves is given, because the second copy must go"
        )
        raise LayoutError(msg)
