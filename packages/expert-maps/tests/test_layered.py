# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from strategies import placements

from expert_maps import (
    ExpertMapsError,
    LoadError,
    Placement,
    PlacementError,
    balancedness,
    evaluate,
    metrics,
    over_steps,
    peak_to_mean,
    rank_load,
    step_peaks,
    write_placement,
)
from expert_maps.formats import read_any_placement
from expert_maps.layered import LayeredPlacement, from_rank_lists, layers_of, refuse_layered

if TYPE_CHECKING:
    from pathlib import Path

TWO = [[[0, 1, 3], [2, 3, 0]], [[3, 1], [2, 0]]]


def test_layers_keep_their_own_slots() -> None:
    placement = LayeredPlacement.from_rank_lists(TWO)
    assert placement.slots_per_rank.tolist() == [[3, 3], [2, 2]]
    assert placement.num_physical_experts.tolist() == [6, 4]
    assert placement.num_redundant_experts.tolist() == [2, 0]
    assert (placement.num_layers, placement.num_logical_experts, placement.ep_size) == (2, 4, 2)
    assert placement.local_experts(1, 0).tolist() == [3, 1]
    assert placement.expert_map(0, 1).tolist() == [2, -1, 0, 1]
    assert placement.log2phy(0, 1).tolist() == [5, 1, 3, 4]
    assert placement.replica_count.tolist() == [[2, 1, 1, 2], [1, 1, 1, 1]]
    assert "num_redundant_experts=0…2" in repr(placement)
    with pytest.raises(ExpertMapsError, match="layer is 2"):
        placement.layer(2)


def test_rank_loads_are_those_of_each_layer_alone() -> None:
    placement = LayeredPlacement.from_rank_lists(TWO)
    load = np.array([[10, 1, 2, 8], [1, 2, 3, 4]])
    assert placement.rank_load(load).tolist() == [[10, 11], [6, 4]]
    assert placement.rank_load(np.stack([load, load])).tolist() == [[20, 22], [12, 8]]
    assert placement.balancedness(load).tolist() == [10.5 / 11, 5 / 6]
    assert placement.overall_balancedness(load) == 15.5 / 17
    assert placement.overall_balancedness(np.zeros((2, 4))) == 1
    with pytest.raises(LoadError, match="3 layers and 4 experts; expected 2 and 4"):
        placement.rank_load(np.ones((3, 4)))


def test_equality_and_digest_go_by_content() -> None:
    placement, same = (LayeredPlacement.from_rank_lists(TWO) for _ in range(2))
    other = LayeredPlacement.from_rank_lists([TWO[0], [[1, 3], [2, 0]]])
    assert placement == same != other
    assert hash(placement) == hash(same)
    assert placement.digest == same.digest != other.digest
    assert placement != placement.layer(0)


@pytest.mark.parametrize(
    ("layers", "flags", "kinds"),
    [
        ([[[0, 1, 0], [2, 3]], [[0, 1], [2, 3]]], {}, ["uneven", "duplicate"]),
        (
            [[[0, 1, 0], [2, 3]], [[0, 1], [2, 3]]],
            {"allow_uneven": True, "allow_duplicates": True},
            [],
        ),
        ([[[0, 1], [2, 3]], [[0, 1, 2], [2, 0, 1]]], {}, ["uneven", "uneven", "missing"]),
        ([[[0, 1], [2, 3]], [[0, 1, 2], [2, 0, 1]]], {"allow_uneven": True}, ["missing"]),
        ([[[0, 1, 9], [2, 3, 1]], [[0, 1], [2, 3]]], {"allow_uneven": True}, ["out_of_range"]),
    ],
)
def test_rules_hold_in_every_layer(
    layers: list[list[list[int]]], flags: dict[str, bool], kinds: list[str]
) -> None:
    if not kinds:
        assert LayeredPlacement.from_rank_lists(layers, **flags).num_layers == 2
        return
    with pytest.raises(PlacementError) as caught:
        LayeredPlacement.from_rank_lists(layers, num_logical_experts=4, **flags)
    assert [violation.kind for violation in caught.value.violations] == kinds


def test_layers_must_belong_together() -> None:
    one = Placement([[0, 1]], 2)
    for layers in ((), (one, Placement([[0, 1, 2, 3]], 2)), (Placement([[0, 1], [1, 0]], 2),)):
        with pytest.raises(ExpertMapsError, match="expected"):
            LayeredPlacement(layers)


def test_where_a_placement_is_wanted_each_layer_that_differs_is_named() -> None:
    with pytest.raises(
        PlacementError, match=r"layer 1, rank 0: 2 slots, but layer 0 has 3.*evaluate"
    ) as caught:
        refuse_layered(from_rank_lists(TWO))
    assert [(each.layer, each.rank) for each in caught.value.violations] == [(1, 0), (1, 1)]


@given(placements())
def test_layers_of_a_placement_put_together_carry_the_same_load(placement: Placement) -> None:
    layered = LayeredPlacement(tuple(layers_of(placement)))
    assert not layered.differing_layers()
    load = np.arange(placement.num_layers * placement.num_logical_experts).reshape(placement.num_layers, -1)
    np.testing.assert_array_equal(layered.rank_load(load), metrics.rank_load(placement, load))
    alike = from_rank_lists(
        [
            [placement.local_experts(layer, rank).tolist() for rank in range(placement.ep_size)]
            for layer in range(placement.num_layers)
        ],
        num_logical_experts=placement.num_logical_experts,
    )
    assert alike == placement


def test_metrics_take_one_whose_slots_differ_by_layer_and_its_evaluation(tmp_path: Path) -> None:
    placement = LayeredPlacement.from_rank_lists(TWO)
    load = np.arange(1.0, 1 + 3 * 2 * placement.num_logical_experts).reshape(3, 2, -1)
    found = evaluate(placement, load)
    assert evaluate(found, load) == found
    for either in (placement, found):
        np.testing.assert_array_equal(rank_load(either, load), placement.rank_load(load))
        np.testing.assert_array_equal(balancedness(either, load), found.balancedness)
        np.testing.assert_array_equal(step_peaks(either, load), found.step_peaks)
        assert over_steps(either, load) == found.over_steps
        write_placement(either, tmp_path / "map.json")
        assert read_any_placement(tmp_path / "map.json") == placement
    by_layer = [rank_load(layer, load[:, row : row + 1]) for row, layer in enumerate(placement.layers)]
    np.testing.assert_array_equal(rank_load(placement, load), np.concatenate(by_layer))
    with pytest.raises(LoadError, match="load has 1 layer "):
        rank_load(placement, load[0, :1])
    one = LayeredPlacement.from_rank_lists(TWO[:1])
    assert "slots differ by layer" in evaluate(one, load[:, :1]).summary()


def test_arrays_are_read_only() -> None:
    placement = LayeredPlacement.from_rank_lists(TWO)
    load = np.ones((2, placement.num_logical_experts))
    arrays = (
        placement.slots_per_rank,
        placement.num_physical_experts,
        placement.num_redundant_experts,
        placement.replica_count,
        placement.rank_load(load),
        placement.balancedness(load),
        rank_load(placement.layers[0], load[:1]),
        balancedness(placement.layers[0], load[:1]),
        peak_to_mean(placement.layers[0], load[:1]),
        step_peaks(placement.layers[0], load[:1]),
    )
    assert not any(array.flags.writeable for array in arrays)
