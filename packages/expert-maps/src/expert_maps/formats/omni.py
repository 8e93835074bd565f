# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""omni-infer's placement pattern, a `.npy` file: 0 or 1 [ranks, MoE layers, experts], whether a rank has an expert.

A rank's experts sit in its slots in ascending order (omni-infer's `expert_mapping.py`, 0.4): any other order, and an expert
twice on a rank, cannot be said. Ranks, and layers, may have unequally many slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError
from expert_maps.formats.mapfile import MapFile, counts_text
from expert_maps.layered import layers_of
from expert_maps.validation import first_true

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked
    from expert_maps.layered import AnyPlacement

_AXES = 3


def is_pattern(value: object) -> bool:
    """Whether an array is 0 and 1 on three axes."""
    return (
        isinstance(value, np.ndarray)
        and value.ndim == _AXES
        and value.size > 0
        and value.dtype.kind in "biuf"
        and bool(((value == 0) | (value == 1)).all())
    )


def parse(content: Content, asked: Asked) -> MapFile:
    """Read a pattern; slots are in ascending order of experts.

    Raises:
        FormatError: not 0 and 1 on three axes, too large, or of other counts than asked.
        PlacementError: it is no valid placement.
    """
    value = content.value
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if not isinstance(value, np.ndarray) or not is_pattern(value):
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else content.kind
        msg = f"the file holds {found}; expected an omni-infer pattern, 0 or 1 [ranks, layers, experts]"
        raise FormatError(msg)
    ranks, layers, experts = (int(size) for size in value.shape)
    for name, count, most in (
        ("ranks", ranks, limits.MAX_RANKS),
        ("layers", layers, limits.MAX_LAYERS),
        ("experts", experts, limits.MAX_EXPERTS),
        ("numbers", value.size, limits.MAX_TABLE),
    ):
        if count > most:
            msg = f"the pattern has {count} {name}; expected at most {most}"
            raise FormatError(msg)
    asked.check_ranks(ranks)
    if asked.num_logical_experts not in {None, experts}:
        msg = f"the pattern has {experts} experts; expected {asked.num_logical_experts}, as asked"
        raise FormatError(msg)
    placement = _place(value.astype(bool).transpose(1, 0, 2), asked)
    text = f"omni-infer pattern, {counts_text(placement)}"
    return MapFile(placement, "omni", text, layers=asked.name_rows(layers))


def _place(held: NDArray[np.bool_], asked: Asked) -> AnyPlacement:
    """Return the placement of a pattern [layers, ranks, experts]."""
    per_rank = held.sum(axis=2, dtype=np.int64)
    empty = np.nonzero(per_rank.sum(axis=1) == 0)[0]
    if empty.size and (asked.listing is None or not per_rank.any()):
        msg = f"layer {empty[0]} of the pattern has no experts; expected every expert on at least one rank"
        raise FormatError(msg)
    if per_rank.sum() > limits.MAX_SLOTS:
        msg = f"the pattern has {per_rank.sum()} slots in all layers; expected at most {limits.MAX_SLOTS}"
        raise FormatError(msg)
    flat = np.nonzero(held)[2].astype(np.int64)
    return asked.arrange(flat, per_rank, held.shape[2])


def pattern(placement: AnyPlacement) -> NDArray[np.int32]:
    """Return the pattern of a placement: int32 [R, L, E].

    Raises:
        FormatError: an expert stands twice on a rank, or the table is too large.
    """
    shape = (placement.ep_size, placement.num_layers, placement.num_logical_experts)
    if shape[0] * shape[1] * shape[2] > limits.MAX_TABLE:
        msg = f"the pattern would have {shape[0] * shape[1] * shape[2]} numbers; expected at most {limits.MAX_TABLE}"
        raise FormatError(msg)
    table = np.zeros(shape, dtype=np.int32)
    for layer, of_layer in enumerate(layers_of(placement)):
        np.add.at(table[:, layer], (of_layer.slot_rank, of_layer.physical_to_logical[0]), 1)
    twice = first_true(table > 1)
    if twice is not None:
        rank, layer, expert = twice[0]
        msg = (
            f"layer {layer}, rank {rank}: expert {expert} stands {table[rank, layer, expert]} times there; an "
            "omni-infer pattern can say once only"
        )
        raise FormatError(msg)
    return table


def unordered(placement: AnyPlacement) -> int:
    """Count the ranks, over all layers, whose slots are not in ascending order of experts."""
    count = 0
    for layer in layers_of(placement):
        row, rank = layer.physical_to_logical[0], layer.slot_rank
        falls = (np.diff(row) < 0) & (np.diff(rank) == 0)
        count += len(np.unique(rank[1:][falls]))
    return count
