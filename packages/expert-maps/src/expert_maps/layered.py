# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is done alike with a `Placement` and with a `LayeredPlacement`, whose slots differ by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from expert_maps._frozen import freeze
from expert_maps._input import count_rank_lists
from expert_maps.errors import PlacementError, Violation
from expert_maps.layered_placement import LayeredPlacement
from expert_maps.placement import Placement
from expert_maps.validation import INT32_MAX, as_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.layered_placement import RankLists

AnyPlacement: TypeAlias = Placement | LayeredPlacement

TAKEN_BY = "`check --allow-uneven`, `show`, `evaluate` and `convert` take such a map, in Python `expert_maps.formats.read_any_placement`"


def from_rank_lists(
    layers: RankLists,
    *,
    num_logical_experts: int | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
) -> AnyPlacement:
    """Build a `Placement` where every layer has the same slots, else a `LayeredPlacement`; arguments as there."""
    per_rank = count_rank_lists(layers)
    kind = Placement if is_alike(per_rank) else LayeredPlacement
    return kind.from_rank_lists(
        layers,
        num_logical_experts=num_logical_experts,
        allow_uneven=allow_uneven,
        allow_duplicates=allow_duplicates,
    )


def from_flat(
    experts: NDArray[np.int64],
    per_rank: NDArray[np.int64],
    *,
    num_logical_experts: int | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
) -> AnyPlacement:
    """Build as `from_rank_lists` from the experts of all slots; arguments as `LayeredPlacement.from_flat`."""
    flags = {"allow_uneven": allow_uneven, "allow_duplicates": allow_duplicates}
    if not is_alike(per_rank):
        return LayeredPlacement.from_flat(experts, per_rank, num_logical_experts=num_logical_experts, **flags)
    return Placement(
        experts.reshape(len(per_rank), -1),
        per_rank.shape[1],
        num_logical_experts=num_logical_experts,
        slots_per_rank=per_rank[0],
        **flags,
    )


def as_found(
    experts: NDArray[np.int64], per_rank: NDArray[np.int64], num_logical_experts: int
) -> AnyPlacement:
    """Return slots as they were found, whatever rules they break: to count them, and to compare them with others.

    What follows from the slots may be asked of a layer only where each id is of an expert; see `is_derivable`.

    Args:
        experts: int64 [slots of all layers], in the order of layers, ranks and local slots.
        per_rank: int64 [L, R].
        num_logical_experts: E.
    """
    ids, slots = np.clip(experts, -1, INT32_MAX).astype(np.int32), per_rank.astype(np.int32)
    if is_alike(per_rank):
        return _unchecked(ids.reshape(len(slots), -1), num_logical_experts, slots[0])
    rows = np.split(ids, np.cumsum(per_rank.sum(axis=1))[:-1])
    return LayeredPlacement(
        tuple(
            _unchecked(row[None], num_logical_experts, of_layer)
            for row, of_layer in zip(rows, slots, strict=True)
        )
    )


def is_derivable(layer: Placement) -> bool:
    """Whether maps follow from the slots of a layer, also where it breaks rules: each id is of an expert."""
    row = layer.physical_to_logical
    return bool(row.size) and int(row.min()) >= 0 and int(row.max()) < layer.num_logical_experts


def is_alike(per_rank: NDArray[np.integer]) -> bool:
    """Whether ranks own as many slots in every layer: int [L, R]."""
    return bool((per_rank == per_rank[0]).all())


def layers_of(placement: AnyPlacement) -> Sequence[Placement]:
    """Return the placement of each layer."""
    if isinstance(placement, LayeredPlacement):
        return placement.layers
    return [layer_of(placement, layer) for layer in range(placement.num_layers)]


def layer_of(placement: AnyPlacement, layer: int) -> Placement:
    """Return the placement of one layer, whose index is 0 in it.

    Raises:
        ExpertMapsError: there is no such layer.
    """
    if isinstance(placement, LayeredPlacement):
        return placement.layer(layer)
    row = as_index("layer", layer, placement.num_layers)
    return _unchecked(
        placement.physical_to_logical[row : row + 1], placement.num_logical_experts, placement.slots_per_rank
    )


def refuse_layered(placement: AnyPlacement) -> Placement:
    """Return a `Placement` as it is.

    Raises:
        PlacementError: it has other slots in some layers; each is named, and what takes such a map.
    """
    if isinstance(placement, Placement):
        return placement
    found = placement.differing_layers()  # all of one kind, and perhaps millions
    first = found[0]
    hint = Violation(first.kind, f"{first.message}; {TAKEN_BY}", first.layer, first.rank)
    raise PlacementError(found.with_first(hint))


def _unchecked(rows: NDArray[np.int32], num_logical_experts: int, slots: NDArray[np.int32]) -> Placement:
    return Placement._from_checked(freeze(rows), num_logical_experts, freeze(slots))  # noqa: SLF001 - its rules are the caller's


__all__ = [
    "TAKEN_BY",
    "AnyPlacement",
    "LayeredPlacement",
    "as_found",
    "from_flat",
    "from_rank_lists",
    "is_alike",
    "is_derivable",
    "layer_of",
    "layers_of",
    "refuse_layered",
]
