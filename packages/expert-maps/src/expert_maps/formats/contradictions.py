# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where a map file says of its slots what they are not: such places as violations, each made when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import limits
from expert_maps._broken_rules import Slots
from expert_maps._rules import differing_layers, find_violations, infer_num_logical_experts
from expert_maps.errors import Violation, Violations
from expert_maps.layered import as_found, is_alike
from expert_maps.validation import as_count, check_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.errors import ViolationGroup
    from expert_maps.layered import AnyPlacement

_FEW = 8


def contradiction(
    message: str,
    *,
    layer: int | None = None,
    rank: int | None = None,
    found: str | int | None = None,
    expected: str | int | None = None,
) -> Violation:
    """Return a violation of this kind."""
    return Violation("contradiction", message, layer, rank, found=found, expected=expected)


class Listing:
    """Takes down all that is wrong with a map, so that reading it can go on."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._groups: list[ViolationGroup] = []
        self.breaks_rules = False

    def add(self, group: ViolationGroup) -> None:
        """Take down violations; none is made."""
        self._groups.append(group)

    @property
    def violations(self) -> Violations:
        """All of them, in the order in which they were found."""
        return Violations(self._groups)

    def arrange(
        self,
        experts: NDArray[np.int64],
        per_rank: NDArray[np.int64],
        num_logical_experts: int | None,
        *,
        allow_uneven: bool,
        allow_duplicates: bool,
    ) -> AnyPlacement:
        """Take down which rules of placements the slots break, and return them as they are.

        Args:
            experts: int64 [slots of all layers], at least one.
            per_rank: int64 [L, R].
            num_logical_experts: E; if None, one more than the largest id that can be one.
            allow_uneven: accept ranks with unequally many slots.
            allow_duplicates: accept an expert twice on a rank.

        Raises:
            ExpertMapsError: a count is beyond the limits.
        """
        most = int(per_rank.sum(axis=1).max())
        count = (
            infer_num_logical_experts(experts, most)
            if num_logical_experts is None
            else as_count("num_logical_experts", num_logical_experts, 1, limits.MAX_EXPERTS)
        )
        check_counts(num_layers=len(per_rank), num_logical_experts=count, num_physical_experts=most)
        found = find_violations(
            Slots.from_flat(experts, per_rank),
            count,
            allow_uneven=allow_uneven,
            allow_duplicates=allow_duplicates,
            layers_may_differ=not is_alike(per_rank),
        )
        # The ranks that are uneven within a layer are named by then.
        if not allow_uneven and not is_alike(per_rank) and "uneven" not in found.count_kinds():
            found = found.after(differing_layers(per_rank))
        self.breaks_rules = self.breaks_rules or bool(found)
        self.add(found)
        return as_found(experts, per_rank, count)


@dataclass(frozen=True, eq=False)
class Cells:
    """Numbers of a table in a file that are not what follows from the slots.

    Attributes:
        name: of the table.
        axes: the name of each axis: ``layer``, ``rank``, ``expert``, or another that is no coordinate of a violation.
        found: the table of the file.
        expected: what follows, of the same shape.
        by: what it follows from.
        layer: of the slots, where it is no axis of the table.
    """

    name: str
    axes: tuple[str, ...]
    found: NDArray[np.int64]
    expected: NDArray[np.integer[Any]]
    by: str
    layer: int | None = None

    def __post_init__(self) -> None:
        """Find them."""
        wrong = np.flatnonzero(self.found != self.expected)
        object.__setattr__(self, "_wrong", wrong.astype(np.int32) if self.found.size < 2**31 else wrong)

    def __len__(self) -> int:
        """Count them."""
        return len(self._wrong)  # type: ignore[attr-defined]

    def __getitem__(self, index: int, /) -> Violation:
        """Make one."""
        cell = np.unravel_index(int(self._wrong[index]), self.found.shape)  # type: ignore[attr-defined]
        at = {} if self.layer is None else {"layer": self.layer}
        at |= {axis: int(place) for axis, place in zip(self.axes, cell, strict=True)}
        found, expected = int(self.found[cell]), int(self.expected[cell])
        where = ", ".join(f"{axis} {place}" for axis, place in at.items())
        text = f"{self.name} at {where} is {found}; expected {expected} by {self.by}"
        named = {axis: at.get(axis) for axis in ("layer", "rank", "expert")}
        return Violation("contradiction", text, **named, found=found, expected=expected)


@dataclass(frozen=True, eq=False)
class Copies:
    """Experts of a layer whose slots in a file are others than those that hold them; their order does not matter.

    Attributes:
        name: of the table.
        layer: of the slots.
        found: int64 [E, X], padded with −1.
        expected: int32 [E, X′], padded with −1.
        by: what it follows from.
    """

    name: str
    layer: int
    found: NDArray[np.int64]
    expected: NDArray[np.int32]
    by: str

    def __post_init__(self) -> None:
        """Find them."""
        width = max(self.found.shape[1], self.expected.shape[1])
        differs = (_ascending(self.found, width) != _ascending(self.expected, width)).any(axis=1)
        object.__setattr__(self, "_wrong", np.flatnonzero(differs))

    def __len__(self) -> int:
        """Count them."""
        return len(self._wrong)  # type: ignore[attr-defined]

    def __getitem__(self, index: int, /) -> Violation:
        """Make one."""
        expert = int(self._wrong[index])  # type: ignore[attr-defined]
        found, expected = _listed(self.found[expert]), _listed(self.expected[expert])
        text = (
            f"{self.name} at layer {self.layer}, expert {expert} is {found}; expected {expected} by {self.by}"
        )
        return Violation("contradiction", text, self.layer, expert=expert, found=found, expected=expected)


def _ascending(copies: NDArray[np.integer[Any]], width: int) -> NDArray[np.int64]:
    """Return each expert's slots in ascending order and then −1, all of one width: int64 [E, width]."""
    padded = np.pad(copies, [(0, 0), (0, width - copies.shape[1])], constant_values=-1).astype(np.int64)
    last = np.iinfo(np.int64).max
    # What stands for the padding is itself the number of no slot.
    numbers = np.where(padded == last, np.iinfo(np.int64).min, padded)
    ordered = np.sort(np.where(padded == -1, last, numbers), axis=1)
    return np.where(ordered == last, -1, ordered)


def _listed(slots: NDArray[np.integer[Any]]) -> str:
    found: Sequence[int] = slots[slots != -1].tolist()
    return f"{list(found)}" if len(found) <= _FEW else f"[{', '.join(map(str, found[:_FEW]))}, …]"
