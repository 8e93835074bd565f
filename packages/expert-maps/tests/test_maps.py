# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import placements

from expert_maps import ExpertMapsError, Placement, plan


@given(placements())
def test_every_map_equals_a_plain_loop(placement: Placement) -> None:
    experts, ranks = placement.num_logical_experts, placement.ep_size
    per_rank = placement.num_physical_experts // ranks
    for layer in range(placement.num_layers):
        row = placement.physical_to_logical[layer].tolist()
        copies = [[slot for slot, held in enumerate(row) if held == e] for e in range(experts)]
        assert placement.replica_count[layer].tolist() == [len(slots) for slots in copies]
        width = placement.logical_to_physical.shape[2]
        assert placement.logical_to_physical[layer].tolist() == [
            slots + [-1] * (width - len(slots)) for slots in copies
        ]
        for rank in range(ranks):
            local = row[rank * per_rank : (rank + 1) * per_rank]
            wanted = [local.index(e) if e in local else -1 for e in range(experts)]
            assert placement.local_experts(layer, rank).tolist() == local
            assert placement.expert_map(layer, rank).tolist() == wanted
            assert placement.global_expert_map(layer)[rank].tolist() == wanted
            chosen = [slots[rank % len(slots)] for slots in copies]
            assert placement.log2phy(layer, rank).tolist() == chosen
            assert placement.global_log2phy(layer)[rank].tolist() == chosen


@given(placements(), st.integers(2, 5))
def test_tensor_parallel_choice_equals_a_plain_loop(placement: Placement, tp_size: int) -> None:
    for layer in range(placement.num_layers):
        slots = placement.logical_to_physical[layer]
        counts = placement.replica_count[layer]
        for rank in range(placement.ep_size):
            for tp_rank in (None, 0, tp_size - 1):
                turn = (rank % tp_size if tp_rank is None else tp_rank) + rank // tp_size
                wanted = [slots[e, (turn + e) % counts[e]] for e in range(placement.num_logical_experts)]
                found = placement.log2phy(layer, rank, tp_size=tp_size, tp_rank=tp_rank)
                assert found.tolist() == wanted
            assert (
                placement.global_log2phy(layer, tp_size=tp_size)[rank].tolist()
                == placement.log2phy(layer, rank, tp_size=tp_size).tolist()
            )


@given(placements())
def test_with_the_own_rank_preferred_what_is_here_stays_and_the_rest_is_dealt_out(
    placement: Placement,
) -> None:
    experts, ranks = placement.num_logical_experts, placement.ep_size
    for layer in range(placement.num_layers):
        wanted = np.empty((ranks, experts), dtype=np.int32)
        for expert in range(experts):
            copies = np.nonzero(placement.physical_to_logical[layer] == expert)[0].tolist()
            homes = {int(placement.slot_rank[copy]): copy for copy in copies}
            turn = expert
            for rank in range(ranks):
                wanted[rank, expert] = homes.get(rank, copies[turn % len(copies)])
                turn += rank not in homes
            served = np.bincount(wanted[:, expert], minlength=placement.num_physical_experts)[copies]
            assert np.ptp(served) <= 1
        found = placement.global_log2phy(layer, prefer_own_rank=True)
        assert found.dtype == np.int32
        assert found.tolist() == wanted.tolist()
        for rank in range(ranks):
            assert placement.log2phy(layer, rank, prefer_own_rank=True).tolist() == wanted[rank].tolist()
            local = placement.expert_map(layer, rank) >= 0
            assert (placement.slot_rank[found[rank]] == rank).tolist() == local.tolist()
    every = placement.global_log2phy(prefer_own_rank=True)
    assert every.shape == (placement.num_layers, ranks, experts)
    assert every[-1].tolist() == wanted.tolist()


def test_by_default_a_rank_may_send_away_what_it_holds() -> None:
    # vllm-ascend's rule, which golden maps fix.
    placement = Placement([[0, 1, 2, 1]], 2)
    assert placement.log2phy(0, 0).tolist() == [0, 1, 2]
    moved = Placement([[0, 1, 2, 1, 3, 0]], 3)
    assert moved.log2phy(0, 2).tolist() == [0, 1, 2, 4]
    assert moved.log2phy(0, 2, prefer_own_rank=True).tolist() == [5, 3, 2, 4]


def test_an_expert_twice_on_a_rank_is_taken_from_its_first_slot_there() -> None:
    placement = Placement([[0, 0, 1, 2]], 2, allow_duplicates=True)
    assert placement.global_log2phy(0, prefer_own_rank=True).tolist() == [[0, 2, 3], [0, 2, 3]]


def test_tensor_parallel_ranks_must_agree() -> None:
    placement = Placement([[0, 1, 1, 0]], 2)
    for call in (placement.log2phy, placement.global_log2phy):
        with pytest.raises(ExpertMapsError, match="tp_size is 2 with prefer_own_rank; expected 1"):
            call(*[0] * (1 + (call == placement.log2phy)), tp_size=2, prefer_own_rank=True)


@given(placements())
def test_every_expert_is_reachable_and_every_index_exists(placement: Placement) -> None:
    expert_maps = placement.global_expert_map()
    per_rank = placement.num_physical_experts // placement.ep_size
    assert expert_maps.shape == (placement.num_layers, placement.ep_size, placement.num_logical_experts)
    assert expert_maps.min() >= -1
    assert expert_maps.max() < per_rank
    assert (expert_maps >= 0).any(axis=1).all()
    assert placement.replica_count.min() >= 1
    assert (placement.replica_count.sum(axis=1) == placement.num_physical_experts).all()
    assert placement.num_redundant_experts == placement.num_physical_experts - placement.num_logical_experts


@given(placements())
def test_maps_are_inverses_of_each_other(placement: Placement) -> None:
    layers = np.arange(placement.num_layers)[:, None, None]
    # log2phy leads to a slot that holds the expert, on every rank.
    log2phy = placement.global_log2phy()
    experts = np.broadcast_to(np.arange(placement.num_logical_experts), log2phy.shape)
    np.testing.assert_array_equal(placement.physical_to_logical[layers, log2phy], experts)
    # expert_map leads to a local slot that holds it, where it is not −1.
    for layer, rank, expert in np.argwhere(placement.global_expert_map() >= 0):
        slot = placement.expert_map(layer, rank)[expert]
        assert placement.local_experts(layer, rank)[slot] == expert


@given(placements())
def test_all_maps_are_int32_of_logical_length(placement: Placement) -> None:
    for array in (
        placement.expert_map(0, 0),
        placement.global_expert_map(0),
        placement.global_expert_map(),
        placement.log2phy(0, 0),
        placement.global_log2phy(),
        placement.routing_table(0, 0),
    ):
        assert array.dtype == np.int32
        assert array.shape[-1] == placement.num_logical_experts
        assert array.flags.c_contiguous


def test_many_replicas_are_all_taken() -> None:
    # More than two copies take another path than one or two.
    placement = Placement([[0, 1, 0, 2, 0, 3, 0, 1]], 4)
    assert placement.global_log2phy(0)[:, 0].tolist() == [0, 2, 4, 6]
    assert placement.global_log2phy(0)[:, 1].tolist() == [1, 7, 1, 7]


def test_a_model_sized_placement_agrees_with_its_rows() -> None:
    load = np.random.default_rng(0).lognormal(sigma=1, size=(6, 256))
    placement = plan(load, num_physical_experts=320, ep_size=64).placement
    assert placement.replica_count.max() > 2
    everything = placement.global_log2phy()
    for layer, rank in ((0, 0), (3, 17), (5, 63)):
        np.testing.assert_array_equal(everything[layer, rank], placement.log2phy(layer, rank))
        np.testing.assert_array_equal(
            placement.global_expert_map()[layer, rank], placement.expert_map(layer, rank)
        )


def test_more_experts_than_16_bits_hold() -> None:
    experts = 2**15 + 2
    placement = Placement([np.arange(experts)[::-1]], 2)
    np.testing.assert_array_equal(placement.logical_to_physical[0, :, 0], np.arange(experts)[::-1])


@pytest.mark.parametrize(("tp_size", "tp_rank"), [(0, None), (2, 2), (2, -1), (1, 1)])
def test_a_wrong_tensor_parallel_rank_is_refused(tp_size: int, tp_rank: int | None) -> None:
    with pytest.raises(ExpertMapsError, match="tp_"):
        Placement([[0, 1]], 2).log2phy(0, 0, tp_size=tp_size, tp_rank=tp_rank)
