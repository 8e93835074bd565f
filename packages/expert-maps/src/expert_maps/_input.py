# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a placement is made from: arrays and nested lists, checked for type and shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps._rules import split_evenly
from expert_maps.errors import ExpertMapsError, Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def as_table(physical_to_logical: ArrayLike) -> NDArray[np.int64]:
    """Return int64 [L, P], or raise; int64 so that ids past int32 are reported, not wrapped."""
    try:
        table = np.asarray(physical_to_logical)
    except ValueError as error:
        msg = f"physical_to_logical is ragged; expected [L, P] (from_rank_lists takes lists): {error}"
        raise ExpertMapsError(msg) from error
    if table.ndim != 2 or 0 in table.shape:  # noqa: PLR2004 - [L, P] has two axes
        msg = f"physical_to_logical has shape {list(table.shape)}; expected [L, P] with L, P at least 1"
        raise ExpertMapsError(msg)
    if table.dtype.kind not in "iu":
        msg = f"physical_to_logical has dtype {table.dtype}; expected integers"
        raise ExpertMapsError(msg)
    return table.astype(np.int64)


def as_slots_per_rank(slots_per_rank: ArrayLike | None, num_physical: int, ep_size: int) -> NDArray[np.int64]:
    """Return the slots of each rank, int64 [R]: those given, or P split evenly; or raise."""
    if slots_per_rank is None:
        return split_evenly(num_physical, ep_size)
    slots = np.asarray(slots_per_rank)
    if slots.dtype.kind not in "iu" or slots.shape != (ep_size,):
        msg = f"slots_per_rank is {slots.dtype} {list(slots.shape)}; expected integers [{ep_size}]"
        raise ExpertMapsError(msg)
    if (slots < 0).any() or slots.sum() != num_physical:
        msg = f"slots_per_rank is {slots.tolist()}; expected no negative, and a sum of {num_physical}"
        raise ExpertMapsError(msg)
    return slots.astype(np.int64)


def count_rank_lists(layers: Sequence[Sequence[Sequence[int]]]) -> NDArray[np.int64]:
    """Return the slots per layer and rank, int64 [L, R]."""
    if not layers or not layers[0]:
        msg = "the placement is empty; expected at least one layer with at least one rank"
        raise ExpertMapsError(msg)
    for layer, ranks in enumerate(layers):
        if len(ranks) != len(layers[0]):
            msg = f"layer {layer} names {len(ranks)} ranks; expected {len(layers[0])}, as layer 0 does"
            raise ExpertMapsError(msg)
    return np.array([[len(slots) for slots in ranks] for ranks in layers], dtype=np.int64)


def differing_layers(per_rank: NDArray[np.int64]) -> list[Violation]:
    """Name each rank whose slots are not as many as in layer 0."""
    return [
        Violation(
            "uneven",
            f"layer {layer}, rank {rank}: {per_rank[layer, rank]} slots, but layer 0 has "
            f"{per_rank[0, rank]} on that rank; expected the same in every layer",
            int(layer),
            int(rank),
        )
        for layer, rank in zip(*np.nonzero(per_rank != per_rank[0]), strict=True)
    ]
