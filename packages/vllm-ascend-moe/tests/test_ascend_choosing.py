# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from expert_maps import Placement, generate_placement, plan
from vllm_ascend_moe.backends.ascend.choosing import PERIOD, Choosing
from vllm_ascend_moe.core.replicas import REPLICA_CHOICES, SlotRule, build_routing_table
from vllm_ascend_moe.hooks.wrapping import UpstreamError

E, RANKS, TOP_K = 8, 2, 3


@dataclass(frozen=True)
class Routing:
    expert_map: torch.Tensor | None
    global_redundant_expert_num: int


@dataclass(frozen=True)
class Batch:
    """vllm-ascend's input of a dispatch, as far as it is read."""

    topk_ids: torch.Tensor
    routing: Routing


def planned(seed: int, redundant: int, layers: int = 2) -> Placement:
    weights = np.random.default_rng(seed).lognormal(sigma=1.5, size=(layers, E))
    return plan(weights, num_physical_experts=E + redundant, ep_size=RANKS).placement


def layers_of(placement: Placement, rank: int) -> list[Any]:
    return [
        SimpleNamespace(
            expert_map=torch.tensor(placement.expert_map(layer, rank)),
            log2phy=torch.tensor(placement.log2phy(layer, rank)),
        )
        for layer in range(placement.num_layers)
    ]


def rows_of(placement: Placement) -> list[Any]:
    return placement.physical_to_logical.reshape(placement.num_layers, RANKS, -1).tolist()


def dispatch(
    choosing: Choosing,
    layer: Any,  # noqa: ANN401 - a stand-in
    logical: torch.Tensor,
    redundant: int,
) -> dict[tuple[int, int], int]:
    """Let a batch in as vllm-ascend does, and return what this rank computes: (token, expert) to slot."""
    given = Batch(layer.log2phy[logical], Routing(layer.expert_map, redundant))
    seen = []
    choosing.around_gather(lambda _, batch: seen.append(batch), None, given)
    (batch,) = seen
    # What vllm-ascend does next.
    assert len(batch.routing.expert_map) + batch.routing.global_redundant_expert_num == E + redundant
    local = batch.routing.expert_map[batch.topk_ids]
    assert batch.topk_ids.dtype == given.topk_ids.dtype
    return {
        (token, int(expert)): int(slot)
        for token, (experts, slots) in enumerate(zip(logical, local, strict=True))
        for expert, slot in zip(experts, slots, strict=True)
        if slot >= 0
    }


def tokens(number: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(number)
    return torch.stack([torch.randperm(E, generator=draw)[:TOP_K] for _ in range(number)])


@pytest.mark.parametrize("redundant", [0, 2, 4])
def test_every_entry_is_computed_once_by_a_slot_of_its_expert(redundant: int) -> None:
    placement = planned(0, redundant)
    ranks_of = [Choosing() for _ in range(RANKS)]
    by_rank = [layers_of(placement, rank) for rank in range(RANKS)]
    for rank, choosing in enumerate(ranks_of):
        choosing.follow(by_rank[rank], rows_of(placement), rank)
    logical = tokens(2 * PERIOD + 5)
    check(placement, ranks_of, by_rank, logical, redundant)
    # Experts have moved: vllm-ascend writes log2phy in place, and leaves its map as it was.
    moved = planned(7, redundant)
    assert moved != placement
    for rank, choosing in enumerate(ranks_of):
        for index, row in enumerate(rows_of(moved)):
            by_rank[rank][index].log2phy.copy_(torch.tensor(moved.log2phy(index, rank)))
            choosing.moved(index, row)
    check(moved, ranks_of, by_rank, logical, redundant)


def check(
    placement: Placement,
    ranks_of: list[Choosing],
    by_rank: list[list[Any]],
    logical: torch.Tensor,
    redundant: int,
) -> None:
    for index in range(placement.num_layers):
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, choosing in enumerate(ranks_of):
            for entry, slot in dispatch(choosing, by_rank[rank][index], logical, redundant).items():
                assert entry not in found, "computed twice"
                found[entry] = (rank, slot)
        rows = rows_of(placement)[index]
        for token, experts in enumerate(logical.tolist()):
            for expert in experts:
                rank, slot = found[token, expert]
                assert rows[rank][slot] == expert
        # Copies take their turns.
        for expert, count in enumerate(placement.replica_count[index]):
            used = {place for (_, of), place in found.items() if of == expert}
            assert len(used) == count


@pytest.mark.parametrize("choice", REPLICA_CHOICES)
def test_tokens_of_a_rank_of_its_own_take_the_copies_that_are_asked_for(choice: Any) -> None:  # noqa: ANN401 - a name
    placement = planned(0, 4)
    weights = None
    if choice == "weighted":
        weights = (
            np.where(placement.logical_to_physical >= 0, 1.0, 0.0)
            * [3.0, 1.0, 1.0, 1.0][: placement.logical_to_physical.shape[2]]
        )
        weights /= weights.sum(axis=2, keepdims=True)
    rank, tp_size = 1, 2
    rule = SlotRule(choice, rank, tp_size, weights=weights)
    (layers, rows), logical = (layers_of(placement, rank), rows_of(placement)), tokens(2 * PERIOD + 5)
    choosing = Choosing()
    choosing.follow(layers, rows, rank, own=rule)
    for index, layer in enumerate(layers):
        given = Batch(layer.log2phy[logical], Routing(layer.expert_map, 4))
        chosen = choosing.around_exchange(lambda _, batch: batch, None, given)
        # Only the ids are others.
        assert chosen.routing is given.routing
        table = build_routing_table(
            placement,
            index,
            rank,
            choice,
            tp_size=tp_size,
            rows=PERIOD,
            replica_weights=None if weights is None else weights[index],
        )
        turn = torch.arange(len(logical)) % len(table)
        assert torch.equal(chosen.topk_ids, table[turn[:, None], logical])


def test_where_nothing_is_asked_for_a_rank_sends_as_vllm_ascend_does() -> None:
    placement = planned(0, 4)
    layers = layers_of(placement, 0)
    choosing = Choosing()
    choosing.follow(layers, rows_of(placement), 0)
    given = Batch(layers[0].log2phy[tokens(9)], Routing(layers[0].expert_map, 4))
    assert torch.equal(choosing.around_exchange(lambda _, batch: batch, None, given).topk_ids, given.topk_ids)


def test_where_every_rank_has_all_tokens_weights_are_agreed_on() -> None:
    placement = planned(0, 4)
    weights = np.where(placement.logical_to_physical >= 0, 1.0, 0.0)
    weights[..., 0] *= 7
    weights /= weights.sum(axis=2, keepdims=True)
    logical, chosen = tokens(4 * PERIOD), []
    for rank in range(RANKS):
        layers, choosing = layers_of(placement, rank), Choosing()
        choosing.follow(layers, rows_of(placement), rank, own=SlotRule("weighted", rank, weights=weights))
        given = Batch(layers[0].log2phy[logical], Routing(layers[0].expert_map, 4))
        chosen.append(choosing.around_gather(lambda _, batch: batch, None, given).topk_ids)
    assert torch.equal(*chosen)
    table = build_routing_table(placement, 0, 0, "weighted", rows=PERIOD, replica_weights=weights[0])
    assert torch.equal(chosen[0], table[(torch.arange(len(logical)) % PERIOD)[:, None], logical])


def test_without_maps_a_batch_is_left_as_it_is() -> None:
    linear = generate_placement("linear", num_experts=E, ep_size=RANKS)
    (layer,) = layers_of(linear, 0)
    choosing = Choosing()
    batch = Batch(tokens(4), Routing(layer.expert_map, 0))
    # Before loading, without expert parallelism, and where vLLM's linear map is all there is.
    assert choosing.around_gather(lambda _, given: given, None, batch) is batch
    layer.log2phy = None
    choosing.follow([layer], rows_of(linear), 0)
    assert choosing.around_gather(lambda _, given: given, None, batch) is batch
    choosing.moved(0, rows_of(linear)[0])
    alone = Batch(tokens(4), Routing(None, 0))
    assert choosing.around_gather(lambda _, given: given, None, alone) is alone


def test_a_batch_of_a_layer_that_was_not_loaded_is_refused() -> None:
    placement = planned(0, 2)
    choosing = Choosing()
    choosing.follow(layers_of(placement, 0), rows_of(placement), 0)
    batch = Batch(tokens(4), Routing(torch.zeros(E, dtype=torch.int32), 2))
    with pytest.raises(UpstreamError, match=r"^a batch comes with a map \[8\] that is none of the 2 layers'"):
        choosing.around_gather(lambda *_: None, None, batch)


def test_a_draft_models_layers_do_not_stand_for_the_main_ones() -> None:
    placement, draft = planned(0, 2), planned(3, 2, layers=1)
    choosing = Choosing()
    drafted, main = layers_of(draft, 0), layers_of(placement, 0)
    choosing.follow(drafted, rows_of(draft), 0, is_main=False)
    choosing.follow(main, rows_of(placement), 0)
    choosing.moved(0, rows_of(planned(7, 2))[0])
    logical = tokens(PERIOD)
    rows = rows_of(draft)[0]
    for (_, expert), slot in dispatch(choosing, drafted[0], logical, 2).items():
        assert rows[0][slot] == expert
