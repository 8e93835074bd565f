# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from strategies import placements

from expert_maps import ExpertMapsError, Placement, PlacementError


def violations(error: pytest.ExceptionInfo[PlacementError]) -> list[tuple[object, ...]]:
    return [(v.kind, v.layer, v.rank, v.slot, v.expert) for v in error.value.violations]


def test_arrays_are_int32_read_only_and_copied() -> None:
    slots = np.array([[0, 1, 2, 0]])
    placement = Placement(slots, 2)
    slots[:] = 9
    assert placement.physical_to_logical.tolist() == [[0, 1, 2, 0]]
    for array in (
        placement.physical_to_logical,
        placement.slots_per_rank,
        placement.replica_count,
        placement.logical_to_physical,
        placement.rank_offsets,
    ):
        assert array.dtype == np.int32
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        placement.ep_size = 3  # type: ignore[misc]


def test_counts_beyond_all_reason_are_refused_before_anything_is_allocated() -> None:
    for slots, ep_size, options, message in (
        ([[0, 1]], 2**40, {}, "ep_size is 1099511627776; expected at most 65536"),
        (
            [[0, 1]],
            2,
            {"num_logical_experts": 20_000_000},
            "num_logical_experts is 20000000; expected at most 65536",
        ),
        (np.broadcast_to(0, (5000, 1)), 1, {}, "num_layers is 5000; expected at most 4096"),
        (
            np.broadcast_to(0, (2, 2**23)),
            1,
            {},
            "a placement of num_layers 2 · num_physical_experts 8388608 has 16777216 numbers; expected at most",
        ),
    ):
        with pytest.raises(ExpertMapsError, match=message):
            Placement(slots, ep_size, **options)  # type: ignore[arg-type]
    wide = Placement([np.arange(4096)], 40_000, slots_per_rank=[4096, *[0] * 39_999], allow_uneven=True)
    for call in (wide.global_expert_map, wide.global_log2phy):
        with pytest.raises(
            ExpertMapsError, match="num_logical_experts 4096 has 163840000 numbers; expected at most"
        ):
            call()
    many = np.concatenate([np.zeros(40_000, dtype=int), np.arange(4096)])[None]
    copies = Placement(many, 1, allow_duplicates=True)
    with pytest.raises(ExpertMapsError, match="most replicas 40001 has 163844096 numbers; expected at most"):
        _ = copies.logical_to_physical


def test_every_violation_is_listed_by_layer_rank_and_slot() -> None:
    with pytest.raises(PlacementError) as error:
        Placement([[0, 1, 1, 1], [0, 1, -1, 7], [0, 1, 2, 0]], 2, num_logical_experts=3)
    assert violations(error) == [
        ("out_of_range", 1, 1, 0, -1),
        ("out_of_range", 1, 1, 1, 7),
        ("missing", 0, None, None, 2),
        ("missing", 1, None, None, 2),
        ("duplicate", 0, 1, 1, 1),
    ]
    text = str(error.value)
    assert "5 violations" in text
    assert "layer 1, rank 1, slot 1: expert 7 is out of range; expected 0 … 2" in text
    assert "layer 0, rank 1, slot 1: expert 1 stands twice on this rank (also in slot 0)" in text


def test_a_missing_last_expert_is_noticed_where_the_count_is_given() -> None:
    assert Placement([[0, 1]], 2).num_logical_experts == 2
    with pytest.raises(PlacementError, match="expert 2 is missing"):
        Placement([[0, 1]], 2, num_logical_experts=3)


def test_an_absurd_id_does_not_inflate_the_expert_count() -> None:
    with pytest.raises(PlacementError) as error:
        Placement([[0, 1, 2, 99]], 2)
    assert violations(error) == [("out_of_range", 0, 1, 1, 99)]


def test_twice_on_a_rank_is_allowed_by_a_flag_and_the_first_slot_counts() -> None:
    with pytest.raises(PlacementError, match="stands twice"):
        Placement([[0, 0, 1, 0]], 2)
    placement = Placement([[0, 0, 1, 0]], 2, allow_duplicates=True)
    assert placement.expert_map(0, 0).tolist() == [0, -1]
    assert placement.global_expert_map(0).tolist() == [[0, -1], [1, 0]]
    assert placement.replica_count.tolist() == [[3, 1]]
    assert placement.logical_to_physical.tolist() == [[[0, 1, 3], [2, -1, -1]]]


@pytest.mark.parametrize("copies", [2, 3, 7, 40])
def test_the_first_of_many_equal_slots_wins(copies: int) -> None:
    # NumPy does not promise the order of repeated writes.
    placement = Placement([[0] * copies + [1] * (copies + 1) + [0]], 2, allow_duplicates=True)
    assert placement.global_expert_map(0).tolist() == [[0, copies], [copies, 0]]
    assert placement.expert_map(0, 1).tolist() == [copies, 0]


def test_uneven_slots_need_a_flag_or_no_redundancy() -> None:
    # vLLM's split of 5 experts on 2 ranks: the first ranks have one more.
    assert Placement([[0, 1, 2, 3, 4]], 2).slots_per_rank.tolist() == [3, 2]
    with pytest.raises(PlacementError, match="equally many"):
        Placement([[0, 1, 2, 3, 4]], 2, slots_per_rank=[2, 3])
    with pytest.raises(PlacementError, match="equally many"):
        Placement([[0, 1, 2, 3, 4, 0, 1]], 2, num_logical_experts=5)
    placement = Placement([[0, 1, 2, 3, 4]], 2, slots_per_rank=[1, 4], allow_uneven=True)
    assert placement.rank_offsets.tolist() == [0, 1, 5]
    assert placement.expert_map(0, 1).tolist() == [-1, 0, 1, 2, 3]
    assert placement.slot_rank.tolist() == [0, 1, 1, 1, 1]


def test_rank_lists_that_are_ragged_name_the_ranks() -> None:
    with pytest.raises(PlacementError) as error:
        Placement.from_rank_lists([[[0, 1], [2, 3], [0]], [[0, 1], [2, 3], [0, 1]]])
    assert violations(error) == [("uneven", 0, 2, None, None)]
    with pytest.raises(PlacementError) as error:
        Placement.from_rank_lists([[[0, 1], [2]], [[0], [2, 1]]], allow_uneven=True)
    assert violations(error) == [("uneven", 1, 0, None, None), ("uneven", 1, 1, None, None)]


def test_rank_lists_equal_the_flat_form() -> None:
    lists = [[[0, 1], [2, 0]], [[2, 1], [0, 1]]]
    assert Placement.from_rank_lists(lists) == Placement([[0, 1, 2, 0], [2, 1, 0, 1]], 2)


@pytest.mark.parametrize(
    ("slots", "ep_size", "message"),
    [
        ([0, 1], 1, r"shape \[2\]"),
        ([[]], 1, "shape"),
        ([[0.0, 1.0]], 1, "dtype float64"),
        ([[True, False]], 1, "dtype bool"),
        ([["0", "1"]], 1, "'0' at "),
        ([[0, 1], [0]], 1, "ragged"),
        ([[0, 1]], 0, "ep_size is 0; expected at least 1"),
        ([[0, 1]], 1.0, "ep_size is 1.0; expected an integer"),
        ([[0, 1]], True, "ep_size is True"),
    ],
)
def test_wrong_arguments_are_named(slots: object, ep_size: object, message: str) -> None:
    with pytest.raises(ExpertMapsError, match=message):
        Placement(slots, ep_size)  # type: ignore[arg-type]


@pytest.mark.parametrize("lists", [[], [[]], [[[], []]], [[[0]], [[0], [1]]], [[[0.5]]], [[["a"]]]])
def test_wrong_rank_lists_are_refused(lists: list[list[list[int]]]) -> None:
    with pytest.raises(ExpertMapsError):
        Placement.from_rank_lists(lists)


def test_wrong_slots_per_rank_are_refused() -> None:
    for slots in ([1, 2], [2], [3, -1], [1.0, 1.0]):
        with pytest.raises(ExpertMapsError, match="slots_per_rank"):
            Placement([[0, 1]], 2, slots_per_rank=slots)


@pytest.mark.parametrize(("layer", "rank"), [(-1, 0), (1, 0), (0, -1), (0, 2)])
def test_indices_that_do_not_exist_are_refused(layer: int, rank: int) -> None:
    placement = Placement([[0, 1]], 2)
    for call in (placement.expert_map, placement.log2phy, placement.routing_table, placement.local_experts):
        with pytest.raises(ExpertMapsError, match="expected one of 0 …"):
            call(layer, rank)


def test_numpy_integers_are_integers() -> None:
    placement = Placement([[0, 1]], np.int64(2))  # type: ignore[arg-type]
    assert placement.expert_map(np.int32(0), np.int64(1)).tolist() == [-1, 0]  # type: ignore[arg-type]


@given(placements())
def test_equality_digest_and_pickling_go_by_value(placement: Placement) -> None:
    same = Placement(
        placement.physical_to_logical, placement.ep_size, num_logical_experts=placement.num_logical_experts
    )
    assert same == placement
    assert same.digest == placement.digest
    assert hash(same) == hash(placement)
    assert pickle.loads(pickle.dumps(placement)) == placement  # noqa: S301 - made here
    other = np.array(placement.physical_to_logical)
    other[0] = (other[0] + 1) % placement.num_logical_experts
    if placement.num_logical_experts > 1:
        changed = Placement(other, placement.ep_size, num_logical_experts=placement.num_logical_experts)
        assert changed != placement
        assert changed.digest != placement.digest


def test_the_digest_depends_on_the_split() -> None:
    even = Placement([[0, 1, 2, 3]], 2)
    assert even.digest != Placement([[0, 1, 2, 3]], 4).digest
    uneven = Placement([[0, 1, 2, 3]], 2, slots_per_rank=[1, 3], allow_uneven=True)
    assert even.digest != uneven.digest
    assert even != uneven
    assert even != "a placement"
    assert "num_redundant_experts=0" in repr(even)


def test_a_violation_count_grows_with_every_error_planted() -> None:
    rng = np.random.default_rng(0)
    slots = np.array([rng.permutation(64) for _ in range(8)])
    for planted in (1, 5, 30):
        broken = slots.copy()
        where = rng.choice(slots.size, planted, replace=False)
        broken.ravel()[where] = 64 + np.arange(planted)
        with pytest.raises(PlacementError) as error:
            Placement(broken, 8, num_logical_experts=64)
        kinds = [v.kind for v in error.value.violations]
        assert kinds.count("out_of_range") == kinds.count("missing") == planted
