# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether the tables of vllm-ascend's layers name what their slots hold: on all ranks at once, in plain values.

Each rank tells what its tables and slots are; what is wrong is then found on every rank from the same values, so all
of them stop with the same words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vllm_ascend_moe.core.checksums import checksum

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from vllm_ascend_moe.backends.ascend.layers import MoELayer

# Of each parameter, each expert's checksum.
Reference = dict[str, dict[int, int]]


@dataclass(frozen=True)
class SlotState:
    """One layer on one rank.

    Attributes:
        row: the expert in each local slot, as the tables name it.
        log2phy: logical expert → the physical one that this rank sends to; None without EPLB.
        problems: slots that hold something else, and what.
        sums: the checksum of each slot, by parameter; empty where none were read.
    """

    row: list[int]
    log2phy: list[int] | None
    problems: list[tuple[int, str]] = field(default_factory=list)
    sums: dict[str, list[int]] = field(default_factory=dict)


def read_state(
    layer: MoELayer,
    problems: Sequence[tuple[int, str]] = (),
    *,
    row: list[int] | None = None,
    sums: bool = True,
    without: Collection[str] = (),
) -> SlotState:
    """Read one layer of this rank.

    Args:
        layer: vllm-ascend's.
        problems: what is known to be wrong already.
        row: the expert in each local slot, where the layer's own map does not say it.
        sums: whether checksums are read.
        without: parameters that are not read.
    """
    log2phy = layer.log2phy
    return SlotState(
        layer.row() if row is None else row,
        None if log2phy is None else log2phy.tolist(),
        list(problems),
        slot_sums(layer.slots(), without) if sums else {},
    )


def slot_sums(slots: dict[str, list[torch.Tensor]], without: Collection[str] = ()) -> dict[str, list[int]]:
    """Return the checksum of each slot's bytes, by parameter; of some parameters they are not read."""
    return {
        name: torch.stack([checksum(tensor) for tensor in tensors]).tolist()
        for name, tensors in slots.items()
        if tensors and name not in without
    }


def wrong_slots(
    layer: int, ranks: Sequence[SlotState], wanted: Sequence[Sequence[int]] | None = None
) -> Iterator[str]:
    """Say what is wrong in one layer.

    Args:
        layer: its index among the model's MoE layers.
        ranks: every rank's part.
        wanted: the expert in each slot of each rank, as asked for; None for what the tables say.
    """
    for rank, state in enumerate(ranks):
        if wanted is not None and list(wanted[rank]) != state.row:
            yield _differs(layer, rank, state.row, wanted[rank])
        for slot, what in state.problems:
            expert = state.row[slot] if slot < len(state.row) else "none"
            yield (
                f"slot {slot} of MoE layer {layer} on rank {rank} holds {what}; expected expert {expert}, as the tables "
                "name it"
            )
    yield from _wrong_tables(layer, ranks)
    yield from _wrong_copies(layer, ranks)


def _differs(layer: int, rank: int, row: Sequence[int], wanted: Sequence[int]) -> str:
    at = next((slot for slot, pair in enumerate(zip(row, wanted, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return f"rank {rank} has {len(row)} slots in MoE layer {layer}; expected {len(wanted)}, as the placement has"
    return (
        f"slot {at} of MoE layer {layer} on rank {rank} is expert {row[at]}'s by the layer's expert_map; expected "
        f"expert {wanted[at]}, as the placement says"
    )


def _wrong_tables(layer: int, ranks: Sequence[SlotState]) -> Iterator[str]:
    """Say where a rank sends an expert's tokens to a slot of another's."""
    flat = [(rank, slot, expert) for rank, state in enumerate(ranks) for slot, expert in enumerate(state.row)]
    for sender, state in enumerate(ranks):
        for expert, physical in enumerate(state.log2phy or ()):
            if not 0 <= physical < len(flat):
                yield (
                    f"log2phy of rank {sender} sends expert {expert} of MoE layer {layer} to physical expert "
                    f"{physical}; expected 0 … {len(flat) - 1}"
                )
            elif flat[physical][2] != expert:
                rank, slot, held = flat[physical]
                yield (
                    f"log2phy of rank {sender} sends expert {expert} of MoE layer {layer} to slot {slot} of rank "
                    f"{rank}, which holds expert {held}; expected a slot of expert {expert}"
                )


def _wrong_copies(layer: int, ranks: Sequence[SlotState]) -> Iterator[str]:
    first: dict[tuple[str, int], tuple[int, int, int]] = {}
    for rank, state in enumerate(ranks):
        for name, sums in state.sums.items():
            for slot, (expert, found) in enumerate(zip(state.row, sums, strict=True)):
                other = first.setdefault((name, expert), (found, rank, slot))
                if other[0] != found:
                    yield (
                        f"slot {slot} of MoE layer {layer} on rank {rank} differs in {name} from slot {other[2]} of rank "
                        f"{other[1]}; expected the same bytes: both are expert {expert}'s by the tables"
                    )


def reference_of(ranks: Sequence[SlotState]) -> Reference:
    """Return each expert's checksums in one layer."""
    found: Reference = {}
    for state in ranks:
        for name, sums in state.sums.items():
            found.setdefault(name, {}).update(zip(state.row, sums, strict=True))
    return found


def moved_wrongly(
    row: Sequence[int], sums: dict[str, list[int]], reference: Reference
) -> list[tuple[int, str]]:
    """Say which slots do not hold their expert's bytes any more: (slot, what they hold).

    Args:
        row: the expert in each slot, as the new tables name it.
        sums: the checksum of each slot, by parameter.
        reference: each expert's.
    """
    found: dict[int, str] = {}
    for name, slots in sums.items():
        experts = reference.get(name, {})
        for slot, (expert, sum_) in enumerate(zip(row, slots, strict=True)):
            if experts.get(expert) not in {None, sum_}:
                of = [other for other, known in experts.items() if known == sum_]
                found.setdefault(slot, f"expert {of[0]}'s {name}" if of else f"no expert's {name}")
    return sorted(found.items())


def one_per_slot(sums: dict[str, list[int]], slots: int) -> list[str]:
    """Return one checksum for each slot, in hex: not every transport carries integers of 64 bits."""
    found = []
    for slot in range(slots):
        total = 0
        for name in sorted(sums):
            total = total * 31 + sums[name][slot]
        found.append(f"{total % 2**64:016x}")
    return found


__all__ = [
    "Reference",
    "SlotState",
    "moved_wrongly",
    "one_per_slot",
    "read_state",
    "reference_of",
    "slot_sums",
    "wrong_slots",
]
