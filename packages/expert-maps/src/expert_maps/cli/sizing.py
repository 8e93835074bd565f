# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From `--redundant` or `--physical`, or neither, to the slots of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps._words import counted
from expert_maps.counts import check_divides, least_redundancy
from expert_maps.errors import LayoutError
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from expert_maps.placement import Placement


def slots_of_layer(
    redundant: int | None,
    physical: int | None,
    num_experts: int,
    ep_size: int | None,
    *,
    allow_uneven: bool = False,
) -> int | None:
    """Return P, or None where neither option is given.

    Args:
        redundant: what `--redundant` says.
        physical: what `--physical` says.
        num_experts: E.
        ep_size: R, by which the slots must divide; None where it is not known yet.
        allow_uneven: whether they need not.

    Raises:
        LayoutError: the two contradict each other, or the slots do not divide by the ranks.
    """
    if redundant is None:
        return physical
    # With counts as users give them, so that the nearest ones that work can be named in the same words.
    copies = as_count("--redundant", redundant, 0, error=LayoutError)
    if physical is not None and physical != num_experts + copies:
        msg = (
            f"--physical is {physical} and --redundant {copies}; expected --physical {num_experts + copies}, the "
            f"{counted(num_experts, 'expert')} and {copies} redundant ones, or only one of the two"
        )
        raise LayoutError(msg)
    if ep_size is not None and not allow_uneven:
        check_divides(num_experts, copies, as_count("ep_size", ep_size, 1, error=LayoutError))
    return num_experts + copies


def slots_or_proposal(
    redundant: int | None,
    physical: int | None,
    num_experts: int,
    ep_size: int,
    current: Placement | None,
    *,
    allow_uneven: bool,
) -> tuple[int, str | None]:
    """Return P, and why that many where nobody has said it; arguments and errors as of the two functions below.

    Args:
        redundant: what `--redundant` says.
        physical: what `--physical` says.
        num_experts: E.
        ep_size: R.
        current: the map in use, or None.
        allow_uneven: whether the slots need not divide by the ranks.

    Raises:
        LayoutError: as said.
    """
    slots = slots_of_layer(redundant, physical, num_experts, ep_size, allow_uneven=allow_uneven)
    return proposed_slots(num_experts, ep_size, current) if slots is None else (slots, None)


def proposed_slots(num_experts: int, ep_size: int, current: Placement | None) -> tuple[int, str]:
    """Return P where nobody has said it, and why that many.

    Args:
        num_experts: E.
        ep_size: R.
        current: the map in use, whose slots are kept.

    Raises:
        LayoutError: there are no ranks.
    """
    ranks = as_count("ep_size", ep_size, 1, error=LayoutError)
    if current is not None:
        copies = current.num_redundant_experts
        return current.num_physical_experts, f"--redundant {copies} taken, as the map in use has"
    copies = least_redundancy(num_experts, ranks)
    # Beyond that an expert would stand twice on a rank.
    has_more = num_experts + copies + ranks <= num_experts * ranks
    more = f"; --redundant {copies + ranks} gives each rank one slot more" if has_more else ""
    return (
        num_experts + copies,
        f"--redundant {copies} taken, the least with which {counted(num_experts, 'expert')} and copies divide by {counted(ranks, 'rank')}{more}",
    )
