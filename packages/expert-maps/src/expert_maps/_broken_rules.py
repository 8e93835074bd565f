# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The slots of a placement as they were found, and the violations of each rule: counted as arrays, each made when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._frozen import lazy
from expert_maps.errors import Violation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Slots:
    """Every slot of a placement, also of a ragged one.

    Attributes:
        expert: int64 [N], the logical expert in each slot, in (layer, rank, slot) order.
        per_rank: int64 [L, R], how many slots each rank has.
    """

    expert: Int64Array
    per_rank: Int64Array

    @classmethod
    def from_flat(cls, expert: Int64Array, per_rank: Int64Array) -> Slots:
        """Build from the experts in (layer, rank, slot) order and the slots per layer and rank."""
        return cls(expert, per_rank)

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.per_rank.shape[0])

    @property
    def ep_size(self) -> int:
        """R."""
        return int(self.per_rank.shape[1])

    @lazy
    def ends(self) -> Int64Array:
        """int64 [L · R]: where each rank's slots end."""
        return np.cumsum(self.per_rank.ravel())

    def owners(self) -> Int64Array:
        """Return layer · R + rank of each slot, int64 [N]."""
        return np.repeat(np.arange(self.per_rank.size), self.per_rank.ravel())

    def layers(self) -> Int64Array:
        """Return the layer of each slot, int64 [N]."""
        return np.repeat(np.arange(self.num_layers), self.per_rank.sum(axis=1))

    def place(self, index: int) -> tuple[int, int, int]:
        """Return the layer, rank and local slot of one of the N slots."""
        owner = int(np.searchsorted(self.ends, index, side="right"))
        first = int(self.ends[owner]) - int(self.per_rank.flat[owner])
        return owner // self.ep_size, owner % self.ep_size, index - first


@dataclass(frozen=True, eq=False)
class Uneven:
    """Ranks with another number of slots than meant, or, where none is given, than in layer 0."""

    per_rank: Int64Array  # [L, R]
    cells: NDArray[np.intp]  # layer · R + rank
    usual: Int64Array | None  # [L]

    def __len__(self) -> int:
        """Count them."""
        return len(self.cells)

    def __getitem__(self, index: int) -> Violation:
        """Make one."""
        layer, rank = divmod(int(self.cells[index]), self.per_rank.shape[1])
        slots = int(self.per_rank[layer, rank])
        found = f"layer {layer}, rank {rank}: {slots} slots"
        if self.usual is None:
            expected = int(self.per_rank[0, rank])
            text = f"{found}, but layer 0 has {expected} on that rank; expected the same in every layer"
        else:
            expected = int(self.usual[layer])
            text = f"{found}; expected {expected}, equally many on every rank"
        return Violation("uneven", text, layer, rank, found=slots, expected=expected)


@dataclass(frozen=True, eq=False)
class OutOfRange:
    """Slots whose expert does not exist."""

    slots: Slots
    which: NDArray[np.intp]
    num_logical_experts: int

    def __len__(self) -> int:
        """Count them."""
        return len(self.which)

    def __getitem__(self, index: int) -> Violation:
        """Make one."""
        place = int(self.which[index])
        layer, rank, slot = self.slots.place(place)
        expert = int(self.slots.expert[place])
        known = f"0 … {self.num_logical_experts - 1}"
        text = f"layer {layer}, rank {rank}, slot {slot}: expert {expert} is out of range; expected {known}"
        return Violation("out_of_range", text, layer, rank, slot, expert, expert, known)


@dataclass(frozen=True, eq=False)
class Missing:
    """Experts that stand nowhere in their layer."""

    keys: Int64Array  # layer · E + expert
    num_logical_experts: int

    def __len__(self) -> int:
        """Count them."""
        return len(self.keys)

    def __getitem__(self, index: int) -> Violation:
        """Make one."""
        layer, expert = divmod(int(self.keys[index]), self.num_logical_experts)
        text = f"layer {layer}: expert {expert} is missing; expected on at least one rank"
        return Violation("missing", text, layer, expert=expert)


@dataclass(frozen=True, eq=False)
class Duplicate:
    """Slots whose expert their rank has in an earlier slot too."""

    slots: Slots
    again: Int64Array
    before: Int64Array

    def __len__(self) -> int:
        """Count them."""
        return len(self.again)

    def __getitem__(self, index: int) -> Violation:
        """Make one."""
        place = int(self.again[index])
        layer, rank, slot = self.slots.place(place)
        expert = int(self.slots.expert[place])
        first = self.slots.place(int(self.before[index]))[2]
        text = (
            f"layer {layer}, rank {rank}, slot {slot}: expert {expert} stands twice on this rank "
            f"(also in slot {first})"
        )
        return Violation("duplicate", text, layer, rank, slot, expert)
