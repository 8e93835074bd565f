# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from expert_maps import (
    ExpertMapsError,
    FormatError,
    LayoutError,
    Placement,
    PlacementError,
    generate_placement,
    plan,
    write_placement,
)
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.core.sources import PlacementSource, count_layers, find_source
from vllm_ascend_moe.eplb import EplbConfigError, read_expert_map

if TYPE_CHECKING:
    from pathlib import Path


def planned(num_layers: int = 3) -> Placement:
    """16 experts with 4 copies on 4 ranks, each layer in its own way."""
    load = np.random.default_rng(0).lognormal(size=(num_layers, 16))
    return plan(load, num_physical_experts=20, ep_size=4).placement


@pytest.fixture
def map_file(tmp_path: Path) -> str:
    write_placement(planned(), tmp_path / "map.json")
    return str(tmp_path / "map.json")


# Layouts


@pytest.mark.parametrize(
    ("settings", "layout", "redundant", "name"),
    [
        (Settings(), "linear", 0, "layout linear"),
        (Settings(num_redundant_experts=0), "linear", 0, "layout linear"),
        (Settings(num_redundant_experts=4), "ring", 4, "layout ring with 4 redundant experts"),
        (Settings(layout="ring"), "ring", 0, "layout ring"),
        (Settings(layout="round_robin"), "round_robin", 0, "layout round_robin"),
        (
            Settings(layout="append", num_redundant_experts=8),
            "append",
            8,
            "layout append with 8 redundant experts",
        ),
    ],
)
def test_layouts_are_those_of_expert_maps(settings: Settings, layout: str, redundant: int, name: str) -> None:
    found = find_source(settings, 16, 4)
    wanted = generate_placement(layout, num_experts=16, ep_size=4, num_redundant_experts=redundant)
    assert found == PlacementSource(name, wanted, is_file=False)
    assert found.digest == wanted.digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(num_redundant_experts=5), "nearest that work: 4 and 8"),
        (Settings(layout="linear", num_redundant_experts=4), "use 'ring'"),
        (Settings(layout="round_robin", num_redundant_experts=4), "use 'ring'"),
    ],
)
def test_a_layout_that_does_not_exist_is_refused(settings: Settings, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        find_source(settings, 16, 4)


def test_a_layout_holds_for_every_layer() -> None:
    source = find_source(Settings(num_redundant_experts=4), 16, 4)
    # However many layers the model has, and in which stage they are.
    assert source.layers(0, 5, 5) == source.layers(7, 5, 61)
    wanted = generate_placement("ring", num_experts=16, ep_size=4, num_redundant_experts=4, num_layers=5)
    assert source.layers(0, 5, 5) == wanted


def test_the_digest_is_that_of_all_layers() -> None:
    # As a running server reports it, who knows its layers: the log is compared with that.
    wanted = generate_placement("ring", num_experts=16, ep_size=4, num_redundant_experts=4, num_layers=5)
    source = find_source(Settings(num_redundant_experts=4), 16, 4, num_layers=5)
    assert source.digest == wanted.digest == source.layers(0, 5, 5).digest
    assert source.digest != find_source(Settings(num_redundant_experts=4), 16, 4, num_layers=6).digest


@pytest.mark.parametrize(
    ("config", "num_layers"),
    [
        ({"num_hidden_layers": 6, "num_experts": 16}, 6),
        ({"num_hidden_layers": 6, "n_routed_experts": 16, "first_k_dense_replace": 1}, 5),
        ({"num_hidden_layers": 6, "num_experts": 16, "mlp_only_layers": [0, 3]}, 4),
        ({"num_hidden_layers": 6, "moe_num_experts": 16, "moe_layer_start_index": 2}, 4),
        # Nothing is guessed: an unknown key of sparsity, no experts, or not as many as vLLM counts.
        ({"num_hidden_layers": 6, "num_experts": 16, "moe_layer_stride": 2}, None),
        ({"num_hidden_layers": 6, "expert_amount": 16}, None),
        ({"num_hidden_layers": 6, "num_local_experts": 8}, None),
        ({"num_experts": 16}, None),
    ],
)
def test_layers_are_counted_before_the_model_is_loaded(
    config: dict[str, Any], num_layers: int | None
) -> None:
    text = SimpleNamespace(to_dict=lambda: config)
    model = SimpleNamespace(hf_text_config=text, get_num_experts=lambda: 16)
    assert count_layers(model) == num_layers
    assert count_layers(SimpleNamespace(get_num_experts=lambda: 16)) is None


def test_ranks_of_unequally_many_slots_stay_so() -> None:
    source = find_source(Settings(), 10, 4)
    assert source.layers(0, 2, 2).slots_per_rank.tolist() == [3, 3, 2, 2]
    assert source.layers(0, 2, 2) == generate_placement("linear", num_experts=10, ep_size=4, num_layers=2)


# Map files


def test_a_map_file_alone_decides(map_file: str) -> None:
    for redundant in (None, 0, 4):
        found = find_source(Settings(expert_map_path=map_file, num_redundant_experts=redundant), 16, 4)
        assert found == PlacementSource(map_file, planned(), is_file=True, num_layers=3)
    assert found.digest == planned().digest
    assert read_expert_map(map_file, 16, 4) == planned()


@examples(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_the_stages_of_a_pipeline_take_all_layers_in_order(counts: list[int]) -> None:
    whole = planned(sum(counts))
    source = PlacementSource("map.json", whole, is_file=True)
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    stages = [source.layers(first, count, sum(counts)) for first, count in zip(firsts, counts, strict=True)]
    assert [stage.num_layers for stage in stages] == counts
    rows = np.concatenate([stage.physical_to_logical for stage in stages])
    np.testing.assert_array_equal(rows, whole.physical_to_logical)
    assert {(stage.ep_size, stage.num_logical_experts) for stage in stages} == {(4, 16)}


@pytest.mark.parametrize("total", [2, 4])
def test_a_file_of_another_number_of_layers_is_refused(map_file: str, total: int) -> None:
    source = find_source(Settings(expert_map_path=map_file), 16, 4)
    with pytest.raises(
        EplbConfigError, match=rf"map\.json has 3 layers; expected {total}, as many as the model"
    ):
        source.layers(0, 1, total)


@pytest.mark.parametrize(
    ("num_experts", "ep_size", "redundant", "message"),
    [
        (16, 2, None, r"map\.json is a map for 4 ranks; expected 2"),
        (8, 4, None, r"map\.json is a map for 16 experts; expected 8"),
        (16, 4, 8, r"num_redundant_experts is 8, but .*map\.json has 4; leave it out"),
    ],
)
def test_a_file_for_other_counts_is_refused(
    map_file: str, num_experts: int, ep_size: int, redundant: int | None, message: str
) -> None:
    settings = Settings(expert_map_path=map_file, num_redundant_experts=redundant)
    with pytest.raises(EplbConfigError, match=message):
        find_source(settings, num_experts, ep_size)
    with pytest.raises(EplbConfigError, match=message):
        read_expert_map(map_file, num_experts, ep_size, redundant or 0)


def test_a_file_without_the_models_last_experts_is_refused_in_one_line(map_file: str) -> None:
    # The file by itself is sound: only the model knows that experts 16 to 19 exist.
    with pytest.raises(PlacementError, match=r"map\.json: (?s:.*)expert 16") as details:
        read_expert_map(map_file, 20, 4)
    assert len(details.value.violations) > 1
    with pytest.raises(EplbConfigError) as error:
        find_source(Settings(expert_map_path=map_file), 20, 4)
    # It is just another model's, as one with too many would be.
    wanted = f"{map_file} is a map for 16 experts; expected 20, as the model has: plan it for this model"
    assert str(error.value) == wanted


def test_a_file_with_an_expert_twice_on_a_rank_is_refused(map_file: str, tmp_path: Path) -> None:
    document = json.loads((tmp_path / "map.json").read_text())
    devices = [device["device_expert"] for device in document["layer_list"][1]["device_list"]]
    slots, every = devices[0], [expert for device in devices for expert in device]
    # An expert without another copy, so that it is missing then too.
    sole = next(slot for slot, expert in enumerate(slots) if every.count(expert) == 1)
    slots[sole] = slots[sole - 1]
    (tmp_path / "map.json").write_text(json.dumps(document))
    with pytest.raises(PlacementError) as details:
        read_expert_map(map_file, 16, 4)
    first, *others = details.value.violations
    assert others
    with pytest.raises(EplbConfigError) as error:
        find_source(Settings(expert_map_path=map_file), 16, 4)
    assert str(error.value) == (
        f"{map_file} is no placement of the model's 16 experts: {first.message} "
        f"(and {len(others)} more violations); plan it anew"
    )
    with pytest.raises(EplbConfigError, match=r"is no placement of the model's 20 experts: .*; plan it anew"):
        find_source(Settings(expert_map_path=map_file), 20, 4)


def test_a_file_that_is_not_there_or_no_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "other.json").write_text("{}")
    for name, message in (
        ("none.json", "no such file"),
        ("text.json", "not valid JSON"),
        ("other.json", "other"),
    ):
        with pytest.raises(FormatError, match=message):
            find_source(Settings(expert_map_path=str(tmp_path / name)), 16, 4)


def test_every_error_is_one_of_expert_maps() -> None:
    assert issubclass(EplbConfigError, ExpertMapsError)


# Linear


def test_linear_is_what_vllm_does_by_itself() -> None:
    def is_linear(placement: Placement) -> bool:
        return PlacementSource("", placement, is_file=True).is_linear

    for ranks in (1, 2, 3, 4):
        assert is_linear(generate_placement("linear", num_experts=10, ep_size=ranks, num_layers=3))
    assert is_linear(generate_placement("ring", num_experts=8, ep_size=4))
    assert not is_linear(generate_placement("round_robin", num_experts=8, ep_size=4))
    assert not is_linear(generate_placement("append", num_experts=8, ep_size=4, num_redundant_experts=4))
    rows = np.tile(np.arange(8), (3, 1))
    rows[2, [0, 7]] = 7, 0
    assert not is_linear(Placement(rows, 4))


@examples(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_a_shuffled_placement_is_linear_only_where_nothing_moved(
    experts: int, layers: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = np.array(
        [rng.permutation(experts) if rng.random() < 0.3 else np.arange(experts) for _ in range(layers)]
    )
    source = PlacementSource("", Placement(rows, 1), is_file=True)
    assert source.is_linear == all(row.tolist() == list(range(experts)) for row in rows)
