# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What was read from a server before it was asked anything and again at the end, and what must not lie between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.accuracy.proof import State, compare_replicas

if TYPE_CHECKING:
    from harness.accuracy.arms import Arm


@dataclass(frozen=True)
class Evidence:
    """What was read from a server before and after it was asked.

    Attributes:
        before: None where it could not be read; so too `after`.
        after: with checksums.
        faults: what must not have happened, a line each.
        earlier: rearrangements seen by a run that was cut off, whose answers are used.
    """

    before: State | None
    after: State | None
    faults: list[str] = field(default_factory=list)
    earlier: int = 0

    @property
    def rearrangements(self) -> int:
        """How often experts moved while the questions were asked."""
        return self.earlier + max(0, moves(self.before, self.after))

    def as_record(self) -> dict[str, Any]:
        """Return the part `placement` of a record."""
        before, after = self.before or State(), self.after or State()
        return {
            "eplb_active": before.is_eplb,
            "digest": before.digest,
            "digest_at_end": after.digest,
            "num_redundant_experts": before.num_redundant_experts if before.placement else None,
            "rearrangements": self.rearrangements if after.placement else None,
            "ep_size": before.ep_size,
            "replica_checksums": compare_replicas(self.after)[0],
            "faults": self.faults,
            "dynamic": before.dynamic if before.placement else None,
        }


def moves(before: State | None, after: State | None) -> int:
    """Return how often experts moved between two readings."""
    return (after.rearrangements if after else 0) - (before.rearrangements if before else 0)


def find_faults(
    arm: Arm, before: State | None, after: State | None, earlier: int = 0, *, acted: bool | None = None
) -> list[str]:
    """Return what an arm must not show at the end, a line each; empty for a good one.

    Args:
        arm: what was expected.
        before: read before the first question.
        after: read after the last.
        earlier: rearrangements seen by a run that was cut off, whose answers are used.
        acted: whether experts had moved when the last question was answered; None where it is not known.
    """
    faults = []
    moved = moves(before, after)
    if moved < 0:
        return ["the server was started anew while it was asked"]
    if before is not None and before.placement is not None and (after is None or after.placement is None):
        faults.append("the placement could not be read at the end")
    elif arm.dynamic:
        if not (earlier + moved > 0 if acted is None else acted):
            faults.append(
                "no experts moved while the questions were asked; expected dynamic EPLB to act (with min_gain 0 in "
                "expert_maps it acts whatever it saves)"
            )
    elif before is not None and after is not None and before.digest != after.digest:
        faults.append(
            f"the placement changed from {before.digest!s:.12} to {after.digest!s:.12} in a static arm"
        )
    elif before is not None and after is not None and moved:
        faults.append(f"experts moved {moved} times in a static arm")
    elif arm.role != "eplb" and after is not None and after.is_eplb:
        faults.append(f"the baseline serves with EPLB at the end: digest {after.digest!s:.12}")
    difference = compare_replicas(after)[1]
    return [*faults, difference] if difference else faults
