# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Counts by physical slot become counts by logical expert: the sum over the slots that hold it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.formats.loads.values import check_table

if TYPE_CHECKING:
    from expert_maps.formats.loads.counts import Counts
    from expert_maps.placement import Placement


def by_expert(counts: Counts, placement: Placement | None) -> Counts:
    """Sum the slots of each expert.

    Args:
        counts: by expert, by slot, or as the caller says: by slot if there is a placement.
        placement: what sits in the slots, or None.

    Raises:
        LoadError: a placement is missing, not of the counts' layers, ranks and slots, or not needed.
    """
    steps, layers, columns = counts.values.shape
    if placement is None:
        if counts.by != "slot":
            return counts
        ranks = f" ({counted(counts.ranks[0], 'rank')} of {counts.ranks[1]})" if counts.ranks else ""
        shape = f"{counted(layers, 'layer')} of {columns} slots{ranks}"
        msg = f"counts by physical slot, {shape}; expected --map MAP, the map in use, which says whose slots they are"
        raise LoadError(msg)
    if counts.by == "expert":
        msg = "the counts are by logical expert already; expected no --map, which is for counts by physical slot"
        raise LoadError(msg)
    table = placement.physical_to_logical
    if table.shape != (layers, columns):
        msg = (
            f"counts of {counted(layers, 'layer')} of {columns} slots; expected {counted(len(table), 'layer')} of "
            f"{counted(table.shape[1], 'slot')}, as the map has (choose layers with --layers)"
        )
        raise LoadError(msg)
    # On one rank a placement only tells the slots in their order, as where its file does not say the ranks.
    if counts.ranks is not None and placement.ep_size not in {1, counts.ranks[0]}:
        msg = f"counts of {counted(counts.ranks[0], 'rank')} of {counted(counts.ranks[1], 'slot')}; expected {placement.ep_size}, as the map has"
        raise LoadError(msg)
    experts = placement.num_logical_experts
    check_table((steps, layers, experts))
    values = np.zeros((steps, layers, experts))
    for layer in range(layers):
        np.add.at(values[:, layer].T, table[layer], counts.values[:, layer].T)
    return replace(
        counts,
        values=values,
        by="expert",
        details=(f"{counted(columns, 'slot')} summed by the map", *counts.details),
    )
