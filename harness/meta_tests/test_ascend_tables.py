# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Slots against live tables: right ones pass, and each way to be wrong is named by layer, rank and slot."""

from __future__ import annotations

import copy
import functools
import operator
from typing import TYPE_CHECKING, Any

import pytest

from expert_maps import Placement, generate_placement
from harness.ascend.tables import InspectionError, experts_of, live_rows, slot_faults

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, EXPERTS, RANKS = (1, 3), 8, 2
BYTES = {layer: {expert: f"{layer}-{expert}" for expert in range(EXPERTS)} for layer in LAYERS}


def inspect(placement: Placement, *, with_log2phy: bool = True) -> list[dict[str, Any]]:
    """Return what workers answer that hold a placement."""
    per_rank = placement.num_physical_experts // RANKS
    workers = []
    for rank in range(RANKS):
        layers = []
        for row, layer in enumerate(LAYERS):
            held = placement.physical_to_logical[row, rank * per_rank : (rank + 1) * per_rank]
            layers.append(
                {
                    "layer": layer,
                    "expert_map": placement.expert_map(row, rank).tolist(),
                    "log2phy": placement.log2phy(row, rank).tolist() if with_log2phy else None,
                    "slots": [BYTES[layer][int(expert)] for expert in held],
                }
            )
        workers.append({"ep_rank": rank, "layers": layers})
    return workers


@pytest.fixture
def placement() -> Placement:
    return generate_placement(
        "ring", num_experts=EXPERTS, ep_size=RANKS, num_redundant_experts=2, num_layers=len(LAYERS)
    )


def test_right_slots_have_no_fault(placement: Placement) -> None:
    assert slot_faults(inspect(placement), BYTES) == []


def test_every_row_of_a_table_of_copies_is_looked_at(placement: Placement) -> None:
    workers = inspect(placement)
    for row in range(len(LAYERS)):
        copies = [[int(slot) for slot in slots if slot >= 0] for slots in placement.logical_to_physical[row]]
        for worker in workers:
            worker["layers"][row]["routes"] = copy.deepcopy(copies)
    assert slot_faults(workers, BYTES) == []
    # One row of one rank sends expert 5 to a slot of another's.
    wrong = copies[6][0]
    workers[1]["layers"][1]["routes"][5].append(wrong)
    (fault,) = slot_faults(workers, BYTES)
    assert (fault.layer, fault.expert, fault.holds, fault.table) == (3, 5, 6, "a row of rank 1")
    assert fault.rank * (placement.num_physical_experts // RANKS) + fault.slot == wrong


def test_an_expert_twice_on_a_rank_is_named_by_its_copies() -> None:
    twice = Placement.from_rank_lists(
        [[[0, 1, 2, 3, 0], [4, 5, 6, 7, 5]]] * len(LAYERS), num_logical_experts=EXPERTS, allow_duplicates=True
    )
    workers = inspect(twice)
    assert {fault.table for fault in slot_faults(workers, BYTES)} == {"no expert_map names it"}
    for row in range(len(LAYERS)):
        for worker in workers:
            copies = [[int(slot) for slot in slots if slot >= 0] for slots in twice.logical_to_physical[row]]
            worker["layers"][row]["routes"] = copies
    assert slot_faults(workers, BYTES) == []
    workers[1]["layers"][0]["slots"][4] = BYTES[1][6]
    assert {(fault.rank, fault.slot, fault.expert, fault.holds) for fault in slot_faults(workers, BYTES)} == {
        (1, 4, 5, 6)
    }


def test_experts_come_from_the_linear_layout() -> None:
    linear = generate_placement("linear", num_experts=EXPERTS, ep_size=RANKS, num_layers=len(LAYERS))
    assert experts_of(inspect(linear, with_log2phy=False), EXPERTS) == BYTES


def test_workers_without_a_map_hold_consecutive_experts() -> None:
    linear = generate_placement("linear", num_experts=EXPERTS, ep_size=RANKS, num_layers=len(LAYERS))
    answers = inspect(linear, with_log2phy=False)
    for worker in answers:
        for layer in worker["layers"]:
            layer["expert_map"] = None
    assert slot_faults(answers, BYTES) == []
    answers[1]["layers"][0]["slots"].reverse()
    assert [(fault.rank, fault.slot, fault.expert) for fault in slot_faults(answers, BYTES)] == [
        (1, 0, 4),
        (1, 1, 5),
        (1, 2, 6),
        (1, 3, 7),
    ]


def test_experts_of_equal_bytes_prove_nothing() -> None:
    linear = generate_placement("linear", num_experts=EXPERTS, ep_size=RANKS, num_layers=len(LAYERS))
    answers = inspect(linear)
    answers[0]["layers"][0]["slots"][1] = answers[0]["layers"][0]["slots"][0]
    with pytest.raises(InspectionError, match="layer 1 has experts of equal bytes"):
        experts_of(answers, EXPERTS)


def test_redundant_slots_are_no_linear_layout(placement: Placement) -> None:
    with pytest.raises(InspectionError, match="layer 1 has 10 slots over 2 ranks; expected 8"):
        experts_of(inspect(placement), EXPERTS)


def test_missing_layers_are_named(placement: Placement) -> None:
    answers = inspect(placement)
    for worker in answers:
        del worker["layers"][0]
    with pytest.raises(InspectionError, match=r"MoE layers \[3\]; expected \[1, 3\]"):
        slot_faults(answers, BYTES)


def _neighbour(layer: dict[str, Any]) -> None:
    layer["slots"][2] = layer["slots"][1]


def _noise(layer: dict[str, Any]) -> None:
    layer["slots"][2] = "noise"


def _unnamed(layer: dict[str, Any]) -> None:
    layer["expert_map"] = [-1 if slot == 2 else slot for slot in layer["expert_map"]]


def _past_the_end(layer: dict[str, Any]) -> None:
    layer["expert_map"] = [99 if slot == 2 else slot for slot in layer["expert_map"]]


def _other_rank(layer: dict[str, Any]) -> None:
    layer["log2phy"][2] = 99


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_neighbour, "layer 3, rank 0, slot 2: expert_map names expert 2, but it holds expert 1"),
        (_noise, "layer 3, rank 0, slot 2: expert_map names expert 2, but it holds bytes of no expert"),
        (_unnamed, "layer 3, rank 0, slot 2: no expert_map names it, but it holds expert 2"),
        (_past_the_end, "layer 3, rank 0, slot 99: expert_map names expert 2"),
        (_other_rank, "layer 3, rank 19, slot 4: log2phy of rank 0 names expert 2"),
    ],
)
def test_each_fault_is_named(
    placement: Placement, damage: Callable[[dict[str, Any]], None], said: str
) -> None:
    answers = copy.deepcopy(inspect(placement))
    damage(answers[0]["layers"][1])
    faults = [str(fault) for fault in slot_faults(answers, BYTES)]
    assert any(fault.startswith(said) for fault in faults), faults


def test_a_table_rolled_by_one_is_wrong_everywhere(placement: Placement) -> None:
    answers = inspect(placement)
    table = answers[1]["layers"][0]["log2phy"]
    answers[1]["layers"][0]["log2phy"] = [*table[1:], table[0]]
    faults = slot_faults(answers, BYTES)
    assert {fault.layer for fault in faults} == {1}
    assert {fault.table for fault in faults} == {"log2phy of rank 1"}
    assert len(faults) == EXPERTS


def test_live_rows_are_the_placements(placement: Placement) -> None:
    rows = live_rows(inspect(placement))
    for number, layer in enumerate(LAYERS):
        assert (
            functools.reduce(operator.iadd, rows[layer], []) == placement.physical_to_logical[number].tolist()
        )
