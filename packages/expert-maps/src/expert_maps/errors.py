# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions of this package; all are ``ValueError``, so callers may catch just that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

ViolationKind = Literal["missing", "out_of_range", "duplicate", "uneven"]


class ExpertMapsError(ValueError):
    """Bad input: the message names the quantity, its value and what was expected."""


class FormatError(ExpertMapsError):
    """A file cannot be read or written: absent, unreadable, not JSON, or not of the expected schema."""


class LoadError(ExpertMapsError):
    """An expert load has the wrong shape or type, or holds NaN, infinite or negative counts."""


class LayoutError(ExpertMapsError):
    """A layout or plan was asked for with counts for which none exists."""


@dataclass(frozen=True)
class Violation:
    """One broken rule of a placement, with its coordinates.

    Attributes:
        kind: which rule: ``missing``, ``out_of_range``, ``duplicate`` or ``uneven``.
        message: one line that names layer, rank and slot where they apply.
        layer: MoE layer index, or None where the rule concerns all layers.
        rank: expert-parallel rank, or None (a missing expert is on no rank).
        slot: local slot on that rank, or None.
        expert: logical expert id, or None.
    """

    kind: ViolationKind
    message: str
    layer: int | None = None
    rank: int | None = None
    slot: int | None = None
    expert: int | None = None


class PlacementError(ExpertMapsError):
    """A placement breaks at least one rule.

    Attributes:
        violations: every broken rule, ordered by kind, layer, rank and slot.
    """

    def __init__(self, violations: Sequence[Violation]) -> None:
        """Keep every violation and list all of them in the message."""
        self.violations = tuple(violations)
        count = len(self.violations)
        if count == 1:
            text = f"invalid placement: {self.violations[0].message}"
        else:
            lines = "\n".join(f"  {violation.message}" for violation in self.violations)
            text = f"invalid placement, {count} violations:\n{lines}"
        super().__init__(text)

    @property
    def summary(self) -> str:
        """One line: the first violation, and how many more there are."""
        more = len(self.violations) - 1
        return self.violations[0].message + (f" (and {more} more violations)" if more else "")
