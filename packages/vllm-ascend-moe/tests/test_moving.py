# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from expert_maps import LayoutError, Placement
from vllm_ascend_moe.backends import moving
from vllm_ascend_moe.core.agreement import DisagreementError
from vllm_ascend_moe.core.replicas import SlotRule
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

# Two layers, four experts and two copies on one rank's worth of slots each.
ROWS = np.array([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]])


def test_an_experts_checksum_is_that_of_its_slots() -> None:
    experts = moving.expert_checksums(ROWS, ROWS * 10 + 7)
    assert experts.tolist() == [[7, 17, 27, 37]] * 2
    moving.require_checksums(ROWS[:, ::-1].copy(), ROWS[:, ::-1] * 10 + 7, experts)


def test_copies_that_differ_after_loading_are_named() -> None:
    sums = ROWS * 10
    sums[1, 4] = 99
    with pytest.raises(
        DisagreementError, match=r"slot 0 of MoE layer 1 does not hold, after loading, .* of expert 3 "
    ):
        moving.expert_checksums(ROWS, sums)


def test_a_slot_with_a_neighbours_weights_is_named() -> None:
    experts = moving.expert_checksums(ROWS, ROWS * 10)
    sums = ROWS * 10
    sums[0, 2] = 30
    with pytest.raises(
        DisagreementError, match=r"slot 2 of MoE layer 0 does not hold, .* the weights of expert 2 "
    ):
        moving.require_checksums(ROWS, sums, experts)


def model_state(rows: np.ndarray[Any, np.dtype[np.int64]], num_experts: int) -> SimpleNamespace:
    """Return what vLLM has after a commit: copies in ascending order, in tables of 1024 slots."""
    placement = Placement(rows, 1, num_logical_experts=num_experts, allow_duplicates=True)
    table = torch.full((len(rows), num_experts, 1024), -1)
    copies = torch.from_numpy(placement.logical_to_physical.astype(np.int64))
    table[..., : copies.shape[2]] = copies
    return SimpleNamespace(
        physical_to_logical_map=torch.from_numpy(rows.copy()),
        logical_to_physical_map=table,
        logical_replica_count=torch.from_numpy(placement.replica_count.astype(np.int64)),
        model=SimpleNamespace(num_logical_experts=num_experts),
    )


def test_turns_are_written_in_place_and_only_for_the_layer_that_moved() -> None:
    state = model_state(ROWS, 4)
    before = state.logical_to_physical_map.clone()
    address = state.logical_to_physical_map.data_ptr()
    state.logical_to_physical_map[1] = 5  # of a placement with more copies
    row = torch.from_numpy(ROWS[1].copy())
    state.physical_to_logical_map[1] = 0
    moving.commit_layer(SlotRule("rank_offset", turn=1), state, row, ep_size=2, layer=1)
    assert state.physical_to_logical_map.tolist() == ROWS.tolist()
    assert (state.logical_to_physical_map[1, :, 2:] == -1).all()
    assert state.logical_to_physical_map.data_ptr() == address
    assert torch.equal(state.logical_to_physical_map[0], before[0])
    assert state.logical_to_physical_map[1, 3, :3].tolist() == [4, 0, -1]
    assert state.logical_to_physical_map[1, 0, :2].tolist() == [3, -1]
    assert state.logical_replica_count.tolist() == [[2, 2, 1, 1], [1, 1, 2, 2]]
    moving.write_slots(SlotRule("static", turn=1), state, ep_size=2)
    assert state.logical_replica_count.tolist() == [[1] * 4] * 2
    assert state.logical_to_physical_map[:, :, 0].tolist() == [[4, 5, 2, 3], [3, 2, 5, 4]]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"the new placement of MoE layer 7 has 5 slots; expected 6"):
        moving.commit_layer(
            SlotRule("static"), model_state(ROWS, 4), torch.zeros(5, dtype=torch.long), 2, 6, 1
        )


def test_lists_that_are_moved_are_what_is_compared() -> None:
    # As vllm-ascend has a quantised layer: lists in place of parameters, beside offsets that nobody reads or moves.
    module = torch.nn.Module()
    module.offset = torch.nn.Parameter(torch.randn(6, 2), requires_grad=False)
    weights = [[torch.randn(3) for _ in range(6)], [torch.randn(1) for _ in range(6)]]
    model = SimpleNamespace(
        num_local_physical_experts=6,
        num_redundant_experts=3,
        num_physical_experts=12,
        moe_layers=[SimpleNamespace(routed_experts=module)],
        expert_weights=[weights],
    )
    before = moving.local_checksums(model)
    module.offset.data += 1
    assert moving.local_checksums(model).tolist() == before.tolist()
    for place, held in enumerate(weights):
        held[2 + place] += 1
        assert np.flatnonzero(moving.local_checksums(model)[0] != before[0]).tolist() == [2, 3][: place + 1]
    assert moving.redundant_bytes(model) == 6 * 4 * 4 * 3 // 12


class Layer(torch.nn.Module):
    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(weights, requires_grad=False)
        self.scale = torch.nn.Parameter(weights[:, 0] + 1, requires_grad=False)


def one_rank(monkeypatch: pytest.MonkeyPatch, *, leaves_scales: bool = False) -> tuple[Any, Any, Any]:
    """Return a model of two layers, its state and a rank, with a rearrangement that this test wrote."""
    experts = torch.randn(2, 4, 3)
    layers = [Layer(experts[layer][ROWS[0]].clone()) for layer in range(2)]
    model = SimpleNamespace(
        num_local_physical_experts=6,
        moe_layers=[SimpleNamespace(routed_experts=layer) for layer in layers],
        expert_weights=[(), ()],
    )
    state = model_state(np.stack([ROWS[0], ROWS[0]]), 4)
    state.expert_buffer = state.communicator = None

    def rearrange(_old: object, new: torch.Tensor, *_: object) -> None:
        for layer, row in enumerate(new):
            layers[layer].w.data = experts[layer][row]
            if not leaves_scales:
                layers[layer].scale.data = experts[layer][row][:, 0] + 1

    def commit(model_state: Any, rows: torch.Tensor) -> None:  # noqa: ANN401 - vLLM's
        model_state.physical_to_logical_map.copy_(rows)

    functions = {table.MOVE_WEIGHTS: rearrange, table.COMMIT: commit}
    monkeypatch.setattr(wrapping, "original", functions.__getitem__)
    ranks = SimpleNamespace(cpu_group=None, ep_group=SimpleNamespace(device_group=None))
    return model, state, ranks


def test_experts_are_moved_committed_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state, ranks = one_rank(monkeypatch)
    target = Placement(ROWS, 1, num_logical_experts=4, allow_duplicates=True)
    moving.move_experts(target, "map.json", model, state, ranks)
    assert state.physical_to_logical_map.tolist() == ROWS.tolist()


def test_after_a_rearrangement_a_slot_with_other_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state, ranks = one_rank(monkeypatch)
    target = Placement(ROWS, 1, num_logical_experts=4, allow_duplicates=True)
    experts = moving.move_experts(target, "map.json", model, state, ranks)
    assert experts is not None
    state.model = model
    moving.compare_moved(state, 0, 0, experts)
    state.physical_to_logical_map[0, [1, 2]] = state.physical_to_logical_map[0, [2, 1]]
    with pytest.raises(
        DisagreementError, match=r"slot 1 of MoE layer 0 on rank 0 does not hold, .* expert 2 \(2 such"
    ):
        moving.compare_moved(state, 0, 0, experts)


def test_scales_that_stay_behind_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state, ranks = one_rank(monkeypatch, leaves_scales=True)
    target = Placement(ROWS, 1, num_logical_experts=4, allow_duplicates=True)
    with pytest.raises(DisagreementError, match="expected the same bytes, scales included"):
        moving.move_experts(target, "map.json", model, state, ranks)


def test_a_placement_of_other_counts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state, ranks = one_rank(monkeypatch)
    target = Placement(ROWS[:1], 1, num_logical_experts=4, allow_duplicates=True)
    with pytest.raises(EplbConfigError, match=r"map\.json has \[layers, slots\] \[1, 6\]; expected \[2, 6\]"):
        moving.move_experts(target, "map.json", model, state, ranks)


def test_what_a_move_takes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    before, after = Placement([[0, 1, 2, 3]], 2), Placement([[2, 1, 0, 3]], 2)
    first: Any = SimpleNamespace(ep_rank=0, num_nodes=1)
    second: Any = SimpleNamespace(ep_rank=1, num_nodes=1)
    with caplog.at_level("INFO"):
        moving.say_way(before, after, 2**20, second)
        moving.say_way(before, after, 2**20, first)
        moving.say_way(after, after, 2**20, first)
    (record,) = caplog.records
    assert (
        "at least 2.0 MiB between ranks, in disjoint pairs 1 round (no schedule has fewer than 1): 2 experts"
        in (record.getMessage())
    )
