# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`Placement`: the only thing that is stored; every map is derived from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from expert_maps import limits
from expert_maps._broken_rules import Slots
from expert_maps._derived import Derived
from expert_maps._frozen import as_frozen, freeze, lazy
from expert_maps._input import as_slots_per_rank, as_table, count_rank_lists, flatten_rank_lists
from expert_maps._rules import (
    find_violations,
    infer_num_logical_experts,
    is_valid,
)
from expert_maps.errors import ExpertMapsError, PlacementError
from expert_maps.validation import as_count, check_counts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import ArrayLike, NDArray

    Int32Array = NDArray[np.int32]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Placement(Derived):
    """Which logical expert sits in every physical slot of every MoE layer.

    Shapes: L MoE layers, E logical experts, P physical experts (slots), R expert-parallel ranks, X most
    replicas of one expert. Every array is read-only, also those that methods return.

    Attributes:
        physical_to_logical: int32 [L, P], slot → logical expert.
        ep_size: R.
        num_logical_experts: E.
        slots_per_rank: int32 [R], how many slots each rank owns, the same in every layer; P // R
            everywhere unless the placement is uneven.
    """

    physical_to_logical: Int32Array
    ep_size: int
    num_logical_experts: int
    slots_per_rank: Int32Array

    def __init__(
        self,
        physical_to_logical: ArrayLike,
        ep_size: int,
        *,
        num_logical_experts: int | None = None,
        slots_per_rank: ArrayLike | None = None,
        allow_uneven: bool = False,
        allow_duplicates: bool = False,
    ) -> None:
        """Validate and freeze a placement.

        Args:
            physical_to_logical: integers [L, P]; copied. Rank r's slots follow those of rank r − 1.
            ep_size: R, at least 1.
            num_logical_experts: E; if None, one more than the largest id, so give it where it is known:
                only then is a missing last expert noticed.
            slots_per_rank: integers [R] that add up to P; if None, P split evenly, where it does not
                divide with one more on the first ranks, as vLLM's linear layout does.
            allow_uneven: accept ranks with unequally many slots. Without redundancy, experts that do not
                divide by ranks are accepted in vLLM's split even so.
            allow_duplicates: accept an expert twice on a rank.

        Raises:
            ExpertMapsError: an argument has the wrong type, shape or sign.
            PlacementError: an expert is missing or stands twice on a rank, an id is out of range, or
                ranks hold unequally many slots; every violation is listed.
        """
        table = as_table(physical_to_logical)
        num_layers, num_physical = table.shape
        ranks = as_count("ep_size", ep_size, minimum=1, maximum=limits.MAX_RANKS)
        per_rank = as_slots_per_rank(slots_per_rank, num_physical, ranks)
        experts = (
            infer_num_logical_experts(table, num_physical)
            if num_logical_experts is None
            else as_count("num_logical_experts", num_logical_experts, minimum=1, maximum=limits.MAX_EXPERTS)
        )
        check_counts(num_layers=num_layers, num_logical_experts=experts, ep_size=ranks)
        flags = {"allow_uneven": allow_uneven, "allow_duplicates": allow_duplicates}
        if not is_valid(table, per_rank, experts, **flags):
            slots = Slots.from_flat(table.ravel(), np.broadcast_to(per_rank, (num_layers, ranks)))
            raise PlacementError(find_violations(slots, experts, **flags))
        self._set(freeze(table.astype(np.int32)), ranks, experts, freeze(per_rank.astype(np.int32)))

    def _set(self, table: Int32Array, ep_size: int, experts: int, slots_per_rank: Int32Array) -> None:
        object.__setattr__(self, "physical_to_logical", as_frozen(table))
        object.__setattr__(self, "ep_size", ep_size)
        object.__setattr__(self, "num_logical_experts", experts)
        object.__setattr__(self, "slots_per_rank", as_frozen(slots_per_rank))

    @classmethod
    def _from_checked(
        cls, physical_to_logical: Int32Array, num_logical_experts: int, slots_per_rank: Int32Array
    ) -> Placement:
        """Take over what has been checked already: the planner checks its own answers in a fraction of the time.

        Args:
            physical_to_logical: int32 [L, P], by the constructor's rules; not copied.
            num_logical_experts: E.
            slots_per_rank: int32 [R]; not copied.
        """
        placement = cls.__new__(cls)
        placement._set(  # noqa: SLF001 - its own class
            freeze(physical_to_logical), len(slots_per_rank), num_logical_experts, freeze(slots_per_rank)
        )
        return placement

    @classmethod
    def from_rank_lists(
        cls,
        layers: Sequence[Sequence[Sequence[int]]],
        *,
        num_logical_experts: int | None = None,
        allow_uneven: bool = False,
        allow_duplicates: bool = False,
    ) -> Placement:
        """Build from nested lists: ``layers[layer][rank]`` holds that rank's logical experts in slot order.

        Args:
            layers: at least one layer; every layer names the same number of ranks.
            num_logical_experts: as in the constructor.
            allow_uneven: as in the constructor; the slots per rank must still be the same in each layer.
            allow_duplicates: as in the constructor.

        Raises:
            ExpertMapsError: no layers, no ranks, no slots, or layers of different rank counts.
            PlacementError: as in the constructor.
        """
        per_rank = count_rank_lists(layers)
        if not per_rank.sum(axis=1).all():
            msg = f"layer {int(np.argmin(per_rank.sum(axis=1)))} has no slots; expected at least one"
            raise ExpertMapsError(msg)
        flat = flatten_rank_lists(layers)
        if (per_rank == per_rank[0]).all():
            return cls(
                flat.reshape(len(per_rank), -1),
                per_rank.shape[1],
                num_logical_experts=num_logical_experts,
                slots_per_rank=per_rank[0],
                allow_uneven=allow_uneven,
                allow_duplicates=allow_duplicates,
            )
        # Ragged over layers: no [L, P] array exists, but the other rules are still worth reporting.
        slots = Slots.from_flat(flat, per_rank)
        experts = (
            infer_num_logical_experts(flat, int(per_rank.sum(axis=1).max()))
            if num_logical_experts is None
            else as_count("num_logical_experts", num_logical_experts, minimum=1)
        )
        check_counts(num_layers=len(per_rank), num_logical_experts=experts)
        raise PlacementError(
            find_violations(slots, experts, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates)
        )

    # Identity.

    @lazy
    def digest(self) -> str:
        """SHA-256 in hex over counts, slots per rank and slots: equal exactly where placements are."""
        counts = np.array(
            [self.num_layers, self.num_physical_experts, self.num_logical_experts, self.ep_size]
        )
        content = hashlib.sha256(b"expert-maps placement 1\n")
        for array in (counts, self.slots_per_rank, self.physical_to_logical):
            content.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return content.hexdigest()

    def __eq__(self, other: object) -> bool:
        """Compare counts, slots per rank and every slot."""
        if not isinstance(other, Placement):
            return NotImplemented
        return (
            self.num_logical_experts == other.num_logical_experts
            and np.array_equal(self.slots_per_rank, other.slots_per_rank)
            and np.array_equal(self.physical_to_logical, other.physical_to_logical)
        )

    def __hash__(self) -> int:
        """Hash the digest."""
        return hash(self.digest)

    def __repr__(self) -> str:
        """Name the counts; the slots themselves would flood a log."""
        return (
            f"Placement(num_layers={self.num_layers}, num_logical_experts={self.num_logical_experts}, "
            f"num_redundant_experts={self.num_redundant_experts}, ep_size={self.ep_size}, "
            f"digest={self.digest[:12]})"
        )


class HasPlacement(Protocol):
    """A result: what `plan`, `rescale` and `split_replicas` return."""

    @property
    def placement(self) -> Placement:
        """The placement."""
        ...


class HasLayers(Protocol):
    """A placement whose ranks do not own as many slots in every layer: a placement of one layer for each."""

    @property
    def layers(self) -> tuple[Placement, ...]:
        """The layers, of one layer each."""
        ...


PlacementLike: TypeAlias = "Placement | HasPlacement"
Evaluated: TypeAlias = "PlacementLike | HasLayers"


def as_placement(value: PlacementLike, name: str = "placement") -> Placement:
    """Return a placement as it is, or a result's.

    Raises:
        ExpertMapsError: it is neither.
    """
    if isinstance(value, Placement):
        return value
    placement = getattr(value, "placement", None)
    if isinstance(placement, Placement):
        return placement
    msg = f"{name} is {type(value).__name__}; expected a Placement, or a result that has one"
    raise ExpertMapsError(msg)


def as_evaluated(value: Evaluated, name: str = "placement") -> tuple[Placement, tuple[Placement, ...]]:
    """Return a placement as it is, or a result's, also one whose slots differ by layer; and the parts it is made of.

    Returns:
        What was given (with the same counts and maps where its slots differ by layer), and itself, or its layers then.

    Raises:
        ExpertMapsError: it is neither.
    """
    for found in (value, getattr(value, "placement", None)):
        layers = getattr(found, "layers", None)
        if isinstance(layers, tuple) and layers and all(isinstance(layer, Placement) for layer in layers):
            return cast("Placement", found), layers
    plain = as_placement(cast("PlacementLike", value), name)
    return plain, (plain,)
