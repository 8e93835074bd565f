# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a placement is made from: arrays and nested lists, checked for type and shape."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._rules import split_evenly
from expert_maps.errors import ExpertMapsError, printable
from expert_maps.validation import as_array, check_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def as_table(physical_to_logical: ArrayLike) -> NDArray[np.int64]:
    """Return int64 [L, P], or raise; int64 so that ids past int32 are reported, not wrapped."""
    table = as_array("physical_to_logical", physical_to_logical)
    if table.ndim != 2 or 0 in table.shape:  # noqa: PLR2004 - [L, P] has two axes
        msg = (
            f"physical_to_logical has shape {list(table.shape)}; expected [L, P] with L, P at least 1 "
            "(from_rank_lists takes lists a rank)"
        )
        raise ExpertMapsError(msg)
    # Before anything of that size is made: what was given may be one row, broadcast.
    check_counts(num_layers=table.shape[0], num_physical_experts=table.shape[1])
    return _as_ids("physical_to_logical", table)


def _as_ids(name: str, ids: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return a copy in int64, or raise."""
    if ids.dtype.kind not in "iu":
        msg = f"{name} has dtype {ids.dtype}; expected integers"
        raise ExpertMapsError(msg)
    if ids.dtype == np.uint64 and ids.max() > np.iinfo(np.int64).max:
        msg = f"{name} holds {ids.max()}; expected numbers of 64 bits with a sign"
        raise ExpertMapsError(msg)
    return ids.astype(np.int64)


def as_slots_per_rank(slots_per_rank: ArrayLike | None, num_physical: int, ep_size: int) -> NDArray[np.int64]:
    """Return the slots of each rank, int64 [R]: those given, or P split evenly; or raise."""
    check_counts(ep_size=ep_size)
    if slots_per_rank is None:
        return split_evenly(num_physical, ep_size)
    slots = as_array("slots_per_rank", slots_per_rank)
    if slots.dtype.kind not in "iu" or slots.shape != (ep_size,):
        msg = f"slots_per_rank is {slots.dtype} {list(slots.shape)}; expected integers [{ep_size}]"
        raise ExpertMapsError(msg)
    # In Python's integers: in 64 bits a sum can wrap, and so be right by chance.
    numbers: list[int] = slots.tolist()
    if min(numbers) < 0 or sum(numbers) != num_physical:
        given = printable(str(numbers))
        msg = f"slots_per_rank is {given}; expected no negative, and a sum of {num_physical}, not {sum(numbers)}"
        raise ExpertMapsError(msg)
    return slots.astype(np.int64)


def count_rank_lists(layers: Sequence[Sequence[Sequence[int]]]) -> NDArray[np.int64]:
    """Return the slots per layer and rank, int64 [L, R]."""
    if not _is_list(layers) or not all(_is_list(ranks) and all(map(_is_list, ranks)) for ranks in layers):
        msg = "the placement is no list of layers, of ranks, of experts; expected experts[layer][rank][slot]"
        raise ExpertMapsError(msg)
    if not len(layers) or not len(layers[0]):
        msg = "the placement is empty; expected at least one layer with at least one rank"
        raise ExpertMapsError(msg)
    for layer, ranks in enumerate(layers):
        if len(ranks) != len(layers[0]):
            msg = f"layer {layer} names {len(ranks)} ranks; expected {len(layers[0])}, as layer 0 does"
            raise ExpertMapsError(msg)
    check_counts(num_layers=len(layers), ep_size=len(layers[0]))
    per_rank = np.array([[len(slots) for slots in ranks] for ranks in layers], dtype=np.int64)
    most = int(per_rank.sum(axis=1).max())
    check_counts(num_layers=len(layers), num_physical_experts=most)
    return per_rank


def flatten_rank_lists(layers: Sequence[Sequence[Sequence[int]]]) -> NDArray[np.int64]:
    """Return the experts in (layer, rank, slot) order, int64 [N]; the lists have been counted."""
    return _as_ids(
        "expert ids", as_array("expert ids", list(chain.from_iterable(chain.from_iterable(layers))))
    )


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim > 0)
