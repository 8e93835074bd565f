# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expert_maps import ExpertMapsError, Placement, generate_placement
from vllm_ascend_moe.core.replicas import (
    REPLICA_CHOICES,
    ReplicaChoice,
    ReplicaChoiceError,
    build_routing_table,
    check_ranks_agree,
)
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts
from vllm_ascend_moe.npu_ops.ops import map_to_physical

PLACEMENT = generate_placement("ring", num_experts=8, ep_size=4, num_redundant_experts=8)


def shares(placement: Placement) -> np.ndarray:
    """Return weights 3 : 2 : 1 … for the replicas of layer 0."""
    exists = placement.logical_to_physical[0] >= 0
    weights = np.where(exists, np.arange(exists.shape[1], 0, -1), 0).astype(np.float64)
    return weights / weights.sum(axis=1, keepdims=True)


def options(choice: str) -> dict[str, Any]:
    return {"replica_weights": shares(PLACEMENT)} if choice == "weighted" else {}


@pytest.mark.parametrize("choice", REPLICA_CHOICES)
def test_every_entry_is_a_copy_of_its_expert(choice: ReplicaChoice) -> None:
    for rank in range(4):
        table = build_routing_table(PLACEMENT, 0, rank, choice, tp_size=2, **options(choice))
        assert table.dtype == torch.int32
        held = torch.from_numpy(PLACEMENT.physical_to_logical[0].copy())[table.long()]
        assert torch.equal(held, torch.arange(8).expand_as(held).to(torch.int32))


def test_static_choices_are_log2phy() -> None:
    for rank in range(4):
        static = build_routing_table(PLACEMENT, 0, rank)
        assert static.tolist() == [PLACEMENT.log2phy(0, rank).tolist()]
        aware = build_routing_table(PLACEMENT, 0, rank, "tensor_parallel", tp_size=2)
        assert aware.tolist() == [PLACEMENT.log2phy(0, rank, tp_size=2).tolist()]
        own = build_routing_table(PLACEMENT, 0, rank, "own_rank")
        assert own.tolist() == [PLACEMENT.log2phy(0, rank, prefer_own_rank=True).tolist()]
    # What the names promise: a rank of this placement holds half of the experts, and keeps their tokens.
    local = PLACEMENT.expert_map(0, 3) >= 0
    home = PLACEMENT.slot_rank[build_routing_table(PLACEMENT, 0, 3, "own_rank")[0].numpy()]
    assert (home[local] == 3).all()
    assert local.sum() == 4


@pytest.mark.parametrize("redundant", [0, 4, 8])
def test_the_tables_are_those_of_the_placement(redundant: int) -> None:
    placement = generate_placement(
        "ring", num_experts=8, ep_size=4, num_redundant_experts=redundant, num_layers=2
    )
    for rank in range(placement.ep_size):
        found = build_routing_table(placement, 1, rank, "rank_offset")
        assert found.tolist() == placement.routing_table(1, rank).tolist()
        weights = np.where(placement.logical_to_physical[1] >= 0, 1.0, 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
        found = build_routing_table(placement, 1, rank, "weighted", replica_weights=weights, rows=30)
        assert found.tolist() == placement.weighted_routing_table(1, rank, weights, rows=30).tolist()


def test_local_tables_hold_the_copies_of_the_own_rank_or_else_of_the_node() -> None:
    for rank in range(4):
        table = build_routing_table(PLACEMENT, 0, rank, "local", num_nodes=2)
        homes = PLACEMENT.slot_rank[table.numpy()]
        for expert in range(8):
            copies = PLACEMENT.slot_rank[PLACEMENT.physical_to_logical[0] == expert].tolist()
            near = [r for r in copies if r == rank] or [r for r in copies if r // 2 == rank // 2] or copies
            assert set(homes[:, expert].tolist()) == set(near)


@pytest.mark.parametrize(
    ("layer", "rank", "message"),
    [(1, 0, "layer is 1; expected 0 … 0"), (0, 4, "ep_rank is 4; expected 0 … 3")],
)
def test_what_does_not_exist_is_named(layer: int, rank: int, message: str) -> None:
    with pytest.raises(ExpertMapsError, match=message):
        build_routing_table(PLACEMENT, layer, rank)


def test_the_period_can_be_chosen() -> None:
    assert len(build_routing_table(PLACEMENT, 0, 0, "rank_offset", rows=7)) == 7
    assert len(build_routing_table(PLACEMENT, 0, 0, "weighted", rows=9, **options("weighted"))) == 9


def test_weights_are_followed_over_a_period() -> None:
    table = build_routing_table(PLACEMENT, 0, 0, "weighted", rows=60, **options("weighted"))
    ids = torch.arange(8, dtype=torch.int32).repeat(60, 1)
    physical = map_to_physical(ids, table)
    taken = torch.bincount(physical.flatten(), minlength=16)
    for expert in range(8):
        for index, slot in enumerate(PLACEMENT.logical_to_physical[0, expert]):
            if slot >= 0:
                assert abs(taken[slot].item() - 60 * shares(PLACEMENT)[expert, index]) < 1


@pytest.mark.parametrize("choice", ["static", "own_rank", "tensor_parallel", "local"])
def test_where_ranks_must_agree_a_choice_by_rank_is_refused(choice: ReplicaChoice) -> None:
    with pytest.raises(ReplicaChoiceError, match=f"replica choice is {choice}, .*all ranks must agree"):
        build_routing_table(PLACEMENT, 0, 1, choice, ranks_must_agree=True)
    plain = generate_placement("ring", num_experts=8, ep_size=4)
    assert build_routing_table(plain, 0, 1, choice, ranks_must_agree=True).tolist() == [list(range(8))]


@pytest.mark.parametrize("choice", REPLICA_CHOICES)
@pytest.mark.parametrize("redundant", [0, 8])
@pytest.mark.parametrize("agree", [False, True])
def test_a_choice_is_refused_where_ranks_would_disagree_and_nowhere_else(
    choice: str, redundant: int, agree: bool
) -> None:
    placement = generate_placement("ring", num_experts=8, ep_size=4, num_redundant_experts=redundant)
    if agree and redundant and choice in {"static", "own_rank", "tensor_parallel", "local"}:
        with pytest.raises(
            ReplicaChoiceError,
            match=f"^replica choice is {choice}, .*; expected rank_offset or weighted, because .* must agree$",
        ):
            check_ranks_agree(choice, placement, ranks_must_agree=agree)
    else:
        check_ranks_agree(choice, placement, ranks_must_agree=agree)


@pytest.mark.parametrize("choice", ["rank_offset", "weighted"])
def test_where_ranks_must_agree_the_tables_are_the_same_and_the_layer_is_whole(choice: ReplicaChoice) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, ids = (
        torch.randn(13, 16, generator=generator),
        torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(13)]).to(torch.int32),
    )
    probs = torch.rand(13, 3, generator=generator)
    w13, w2 = torch.randn(8, 16, 24, generator=generator), torch.randn(8, 12, 16, generator=generator)
    whole = apply_experts(hidden, probs, ids, ExpertWeights(w13, w2))
    held = torch.from_numpy(PLACEMENT.physical_to_logical[0].copy()).long()

    def sum_over_ranks(*, agree: bool) -> torch.Tensor:
        total = torch.zeros_like(hidden)
        for rank in range(4):
            table = build_routing_table(PLACEMENT, 0, rank, choice, ranks_must_agree=agree, **options(choice))
            own = held[rank * 4 : rank * 4 + 4]
            weights = ExpertWeights(w13[own], w2[own])
            total += apply_experts(
                hidden, probs, map_to_physical(ids, table), weights, first_physical=rank * 4
            )
        return total

    torch.testing.assert_close(sum_over_ranks(agree=True), whole, atol=1e-5, rtol=1e-5)
    # The reason for the rule: with tables of their own the ranks leave tokens out or take them twice.
    assert (sum_over_ranks(agree=False) - whole).abs().max() > 0.1


@pytest.mark.parametrize(
    ("choice", "given", "message"),
    [
        ("hottest", {}, "replica choice is 'hottest'; expected one of static, own_rank, tensor_parallel"),
        ("weighted", {}, "replica_weights are missing; expected them with the choice weighted only"),
        ("static", {"replica_weights": np.ones((8, 3))}, "replica_weights are given; .* it is static"),
        ("rank_offset", {"rows": 0}, "rows is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(
    choice: ReplicaChoice, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExpertMapsError, match=message):
        build_routing_table(PLACEMENT, 0, 0, choice, **given)
