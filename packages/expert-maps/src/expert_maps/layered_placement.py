# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`LayeredPlacement`: ranks whose slots are not as many in every layer.

Such maps are in use: an omni-infer pattern may give copies to some layers only. They can be read, checked, shown and
evaluated; planners and servers want a `Placement`, whose ranks own the same slots in every layer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits, metrics
from expert_maps._broken_rules import Slots
from expert_maps._frozen import freeze
from expert_maps._input import count_rank_lists, flatten_rank_lists
from expert_maps._rules import differing_layers, find_violations, infer_num_logical_experts
from expert_maps.errors import ExpertMapsError, PlacementError, Violations
from expert_maps.placement import Placement
from expert_maps.validation import as_count, as_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from expert_maps.load import ExpertLoad

    Int32Array = NDArray[np.int32]
    RankLists = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True, eq=False, repr=False)
class LayeredPlacement:
    """A placement of one layer after the other, each with slots of its own.

    Attributes:
        layers: L placements of one layer each, of the same experts and ranks.
    """

    layers: tuple[Placement, ...]

    def __post_init__(self) -> None:
        """Check that the layers belong together.

        Raises:
            ExpertMapsError: there are none, one has several layers, or they differ in experts or ranks.
        """
        if not self.layers:
            msg = "layers are empty; expected at least one placement of one layer"
            raise ExpertMapsError(msg)
        first = self.layers[0]
        for index, layer in enumerate(self.layers):
            found = (layer.num_layers, layer.num_logical_experts, layer.ep_size)
            expected = (1, first.num_logical_experts, first.ep_size)
            if found != expected:
                msg = (
                    f"layer {index} has {found[0]} layers, {found[1]} experts and {found[2]} ranks; expected "
                    f"{expected[0]}, {expected[1]} and {expected[2]}"
                )
                raise ExpertMapsError(msg)

    @classmethod
    def from_rank_lists(
        cls,
        layers: RankLists,
        *,
        num_logical_experts: int | None = None,
        allow_uneven: bool = False,
        allow_duplicates: bool = False,
    ) -> LayeredPlacement:
        """Build from nested lists: ``layers[layer][rank]`` holds that rank's logical experts in slot order.

        Args:
            layers: at least one layer; every layer names the same number of ranks.
            num_logical_experts: E; if None, one more than the largest id.
            allow_uneven: accept ranks with unequally many slots within a layer.
            allow_duplicates: accept an expert twice on a rank.

        Raises:
            ExpertMapsError: no layers, no ranks, no slots, layers of different rank counts, or too many of them.
            PlacementError: a rule of placements is broken; every violation is listed.
        """
        per_rank = count_rank_lists(layers)
        if not per_rank.sum(axis=1).all():
            msg = f"layer {int(np.argmin(per_rank.sum(axis=1)))} has no slots; expected at least one"
            raise ExpertMapsError(msg)
        return cls.from_flat(
            flatten_rank_lists(layers),
            per_rank,
            num_logical_experts=num_logical_experts,
            allow_uneven=allow_uneven,
            allow_duplicates=allow_duplicates,
        )

    @classmethod
    def from_flat(
        cls,
        experts: NDArray[np.int64],
        per_rank: NDArray[np.int64],
        *,
        num_logical_experts: int | None = None,
        allow_uneven: bool = False,
        allow_duplicates: bool = False,
    ) -> LayeredPlacement:
        """Build from the experts of all slots, in the order of layers, ranks and local slots.

        Args:
            experts: int64 [slots of all layers].
            per_rank: int64 [L, R], how many slots each rank has in each layer.
            num_logical_experts: as `from_rank_lists`.
            allow_uneven: as `from_rank_lists`.
            allow_duplicates: as `from_rank_lists`.

        Raises:
            ExpertMapsError: a layer without slots.
            PlacementError: as `from_rank_lists`.
        """
        totals = per_rank.sum(axis=1)
        if not totals.all():
            msg = f"layer {int(np.argmin(totals))} has no slots; expected at least one"
            raise ExpertMapsError(msg)
        count = (
            infer_num_logical_experts(experts, int(totals.max()))
            if num_logical_experts is None
            else as_count("num_logical_experts", num_logical_experts, 1, limits.MAX_EXPERTS)
        )
        violations = find_violations(
            Slots.from_flat(experts, per_rank),
            count,
            allow_uneven=allow_uneven,
            allow_duplicates=allow_duplicates,
            layers_may_differ=True,
        )
        if violations:
            # Whoever repairs them ought to know that the layers differ, too; those within a layer are named by then.
            named = allow_uneven or violations[0].kind == "uneven"
            raise PlacementError(violations if named else violations.after(differing_layers(per_rank)))
        rows = np.split(experts, np.cumsum(totals)[:-1])
        return cls(
            tuple(
                Placement(
                    row[None],
                    per_rank.shape[1],
                    num_logical_experts=count,
                    slots_per_rank=of_layer,
                    allow_uneven=True,
                    allow_duplicates=True,
                )
                for row, of_layer in zip(rows, per_rank, strict=True)
            )
        )

    # Counts.

    @property
    def num_layers(self) -> int:
        """L, the number of MoE layers."""
        return len(self.layers)

    @property
    def num_logical_experts(self) -> int:
        """E."""
        return self.layers[0].num_logical_experts

    @property
    def ep_size(self) -> int:
        """R."""
        return self.layers[0].ep_size

    @property
    def slots_per_rank(self) -> Int32Array:
        """int32 [L, R], how many slots each rank owns in each layer."""
        return freeze(np.stack([layer.slots_per_rank for layer in self.layers]))

    @property
    def num_physical_experts(self) -> Int32Array:
        """int32 [L], slots of each layer."""
        return freeze(self.slots_per_rank.sum(axis=1, dtype=np.int32))

    @property
    def num_redundant_experts(self) -> Int32Array:
        """int32 [L], P − E of each layer."""
        return freeze(self.num_physical_experts - np.int32(self.num_logical_experts))

    @property
    def replica_count(self) -> Int32Array:
        """int32 [L, E]: how many copies each logical expert has."""
        return freeze(np.concatenate([layer.replica_count for layer in self.layers]))

    # Slots and maps.

    def layer(self, layer: int) -> Placement:
        """Return the placement of one layer.

        Raises:
            ExpertMapsError: there is no such layer.
        """
        return self.layers[as_index("layer", layer, self.num_layers)]

    def local_experts(self, layer: int, ep_rank: int) -> Int32Array:
        """Return the logical experts on a rank in slot order; see `Placement.local_experts`."""
        return self.layer(layer).local_experts(0, ep_rank)

    def expert_map(self, layer: int, ep_rank: int) -> Int32Array:
        """Return logical id → local slot; see `Placement.expert_map`."""
        return self.layer(layer).expert_map(0, ep_rank)

    def log2phy(self, layer: int, ep_rank: int, *, tp_size: int = 1) -> Int32Array:
        """Return logical id → the physical id that the rank sends to; see `Placement.log2phy`."""
        return self.layer(layer).log2phy(0, ep_rank, tp_size=tp_size)

    def differing_layers(self) -> Violations:
        """Name each rank whose slots are not as many as in layer 0; empty where a `Placement` could say the same."""
        return Violations([differing_layers(self.slots_per_rank.astype(np.int64))])

    # Under a load.

    def rank_load(self, load: ArrayLike | ExpertLoad) -> NDArray[np.float64]:
        """Return the tokens that each rank computes: float64 [L, R]; see `expert_maps.rank_load`.

        Raises:
            LoadError: the load is invalid, or not of these layers and experts.
        """
        return metrics.rank_load(self, load)

    def balancedness(self, load: ArrayLike | ExpertLoad) -> NDArray[np.float64]:
        """Return mean / max rank load per layer: float64 [L]; see `expert_maps.balancedness`."""
        return metrics.balancedness_of(self.rank_load(load))

    def overall_balancedness(self, load: ArrayLike | ExpertLoad) -> float:
        """Return the ratio of the sums over layers of mean and max rank load."""
        return metrics.overall_of(self.rank_load(load))

    # Identity.

    @property
    def digest(self) -> str:
        """SHA-256 in hex over counts, slots per layer and rank, and slots."""
        content = hashlib.sha256(b"expert-maps layered placement 1\n")
        counts = np.array([self.num_layers, self.num_logical_experts, self.ep_size])
        slots = [layer.physical_to_logical.ravel() for layer in self.layers]
        for array in (counts, self.slots_per_rank, *slots):
            content.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return content.hexdigest()

    def __eq__(self, other: object) -> bool:
        """Compare layer by layer."""
        return self.layers == other.layers if isinstance(other, LayeredPlacement) else NotImplemented

    def __hash__(self) -> int:
        """Hash the digest."""
        return hash(self.digest)

    def __repr__(self) -> str:
        """Name the counts."""
        copies = self.num_redundant_experts
        return (
            f"LayeredPlacement(num_layers={self.num_layers}, num_logical_experts={self.num_logical_experts}, "
            f"num_redundant_experts={copies.min()}…{copies.max()}, ep_size={self.ep_size}, "
            f"digest={self.digest[:12]})"
        )
