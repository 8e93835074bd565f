# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What experts and their copies take of a rank's memory, and what that leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_maps.counts import least_redundancy
from expert_maps.errors import LayoutError
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from expert_maps.advice_rules import Served

_AMOUNTS = 3


@dataclass(frozen=True)
class Memory:
    """What an amount of redundancy takes on the rank that has most slots.

    Attributes:
        num_redundant_experts: P − E.
        slots_per_rank: of a layer.
        bytes_per_rank: weights of the experts of a rank, over layers.
        extra_bytes_per_rank: how much more that is than without redundant experts.
        bytes_left: what is left of the device beside that and the server's other memory; below 0 where it does not
            fit; None where the device's memory was not said.
    """

    num_redundant_experts: int
    slots_per_rank: int
    bytes_per_rank: int
    extra_bytes_per_rank: int
    bytes_left: int | None = None

    @property
    def fits(self) -> bool:
        """Whether it fits, as far as that was said."""
        return self.bytes_left is None or self.bytes_left >= 0


def memory_of(
    *,
    num_layers: int,
    num_experts: int,
    ep_size: int,
    redundant: Iterable[int],
    expert_bytes: int,
    served: Served,
) -> list[Memory]:
    """Return what each amount of redundancy takes.

    Args:
        num_layers: L.
        num_experts: E.
        ep_size: R.
        redundant: P − E, several.
        expert_bytes: of one expert's weights in one layer.
        served: its memory.

    Raises:
        LayoutError: an amount is no count.
    """
    own = -(-num_experts // ep_size)
    rows = []
    for amount in redundant:
        copies = as_count("num_redundant_experts", amount, 0, error=LayoutError)
        slots = -(-(num_experts + copies) // ep_size)
        taken = slots * num_layers * expert_bytes
        left = None if served.device_memory is None else served.device_memory - served.other_memory - taken
        rows.append(Memory(copies, slots, taken, (slots - own) * num_layers * expert_bytes, left))
    return rows


def usual_amounts(num_experts: int, ep_size: int) -> list[int]:
    """Return the least redundancy that divides by the ranks, and one and two slots more on each.

    Raises:
        LayoutError: a count is none.
    """
    least = least_redundancy(num_experts, ep_size)
    most = num_experts * (ep_size - 1)
    return [least + more * ep_size for more in range(_AMOUNTS) if least + more * ep_size <= most] or [least]


def memory_assumed(served: Served) -> list[str]:
    """Return what was taken as given of the device's memory, a line, or none where nothing was said of it."""
    if served.device_memory is None:
        return []
    other = (
        f"{served.other_memory / 1e9:g} GB of it for other weights and activations"
        if served.other_memory
        else "other weights and activations are not counted: they take of what is left"
    )
    return [f"a rank may take {served.device_memory / 1e9:g} GB of its device; {other}"]
