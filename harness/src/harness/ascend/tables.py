# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether every slot holds the expert that the live tables name: from what the workers answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# By layer: SHA-256 of each expert's bytes, by logical id.
Experts = dict[int, dict[int, str]]


@dataclass(frozen=True)
class SlotFault:
    """A slot that does not hold what a table says.

    Attributes:
        layer: index in the model.
        rank: whose slot it is.
        slot: local.
        expert: that a table names.
        holds: whose bytes are there; None for none of the model's experts.
        table: ``expert_map``, or ``log2phy`` with the rank that reads it.
    """

    layer: int
    rank: int
    slot: int
    expert: int | None
    holds: int | None
    table: str

    def __str__(self) -> str:
        """Say it as a person reads it."""
        holds = "bytes of no expert of this layer" if self.holds is None else f"expert {self.holds}"
        if self.expert is None:
            return (
                f"layer {self.layer}, rank {self.rank}, slot {self.slot}: {self.table}, but it holds {holds}"
            )
        return (
            f"layer {self.layer}, rank {self.rank}, slot {self.slot}: {self.table} names expert {self.expert}, but it "
            f"holds {holds}"
        )


class InspectionError(RuntimeError):
    """What the workers answered does not say which expert is where."""


def by_layer(inspection: Sequence[Mapping[str, Any]]) -> dict[int, dict[int, Mapping[str, Any]]]:
    """Sort workers' answers: layer → expert-parallel rank → what it holds."""
    found: dict[int, dict[int, Mapping[str, Any]]] = {}
    for worker in inspection:
        for layer in worker["layers"]:
            found.setdefault(layer["layer"], {})[worker["ep_rank"]] = layer
    return dict(sorted(found.items()))


def experts_of(inspection: Sequence[Mapping[str, Any]], num_experts: int) -> Experts:
    """Return each expert's bytes, from workers that hold every expert once in order (vLLM's linear layout).

    Args:
        inspection: every worker's answer.
        num_experts: E.

    Raises:
        InspectionError: they hold something else.
    """
    experts: Experts = {}
    for layer, ranks in by_layer(inspection).items():
        in_order = [slot for rank in sorted(ranks) for slot in ranks[rank]["slots"]]
        if len(in_order) != num_experts:
            msg = f"layer {layer} has {len(in_order)} slots over {len(ranks)} ranks; expected {num_experts}"
            raise InspectionError(msg)
        if len(set(in_order)) != num_experts:
            msg = f"layer {layer} has experts of equal bytes; expected {num_experts} different ones, to tell them apart"
            raise InspectionError(msg)
        experts[layer] = dict(enumerate(in_order))
    return experts


def slot_faults(inspection: Sequence[Mapping[str, Any]], experts: Experts) -> list[SlotFault]:
    """Compare every slot with what the tables name; empty where all is right.

    Args:
        inspection: every worker's answer.
        experts: each expert's bytes.

    Raises:
        InspectionError: layers are missing.
    """
    layers = by_layer(inspection)
    if set(layers) != set(experts):
        msg = f"the workers have MoE layers {sorted(layers)}; expected {sorted(experts)}"
        raise InspectionError(msg)
    return [fault for layer, ranks in layers.items() for fault in _in_layer(layer, ranks, experts[layer])]


def _in_layer(
    layer: int, ranks: Mapping[int, Mapping[str, Any]], expert: Mapping[int, str]
) -> list[SlotFault]:
    whose = {bytes_: each for each, bytes_ in expert.items()}
    faults: list[SlotFault] = []

    def look(rank: int, slot: int, named: int | None, table: str) -> None:
        slots = ranks[rank]["slots"] if rank in ranks else []
        holds = whose.get(slots[slot]) if slot < len(slots) else None
        if named is None or holds != named:
            faults.append(SlotFault(layer, rank, slot, named, holds, table))

    first = 0
    for rank, held in sorted(ranks.items()):
        num_slots = len(held["slots"])
        local = _local_slots(held, first, len(expert))
        for each, slot in enumerate(local):
            if slot >= 0:
                look(rank, slot, each, "expert_map")
        rows = {physical - first for named in held.get("routes") or [] for physical in named}
        for slot in sorted(set(range(num_slots)) - set(local) - rows):
            look(rank, slot, None, "no expert_map names it")
        first += num_slots
        for each, physical in enumerate(held["log2phy"] or []):
            owner, slot = divmod(physical, num_slots)
            look(owner, slot, each, f"log2phy of rank {rank}")
        for each, named in enumerate(held.get("routes") or []):
            for physical in named:
                owner, slot = divmod(physical, num_slots)
                look(owner, slot, each, f"a row of rank {rank}")
    return faults


def _local_slots(held: Mapping[str, Any], first: int, num_experts: int) -> list[int]:
    """Return each expert's slot on a rank, −1 where absent; without a map the experts from ``first`` on."""
    if held["expert_map"] is not None:
        return [int(slot) for slot in held["expert_map"]]
    last = first + len(held["slots"])
    return [each - first if first <= each < last else -1 for each in range(num_experts)]


def live_rows(inspection: Sequence[Mapping[str, Any]]) -> dict[int, list[list[int]]]:
    """Return by layer each rank's experts in the order of its slots, as its live expert map says; −1 for none."""
    rows = {}
    for layer, ranks in by_layer(inspection).items():
        rows[layer] = [_row(ranks[rank]) for rank in sorted(ranks)]
    return rows


def _row(held: Mapping[str, Any]) -> list[int]:
    row = [-1] * len(held["slots"])
    for expert, slot in enumerate(held["expert_map"] or []):
        if 0 <= slot < len(row):
            row[slot] = expert
    return row
