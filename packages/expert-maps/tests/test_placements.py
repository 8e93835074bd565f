# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Maps of every system: recognised by their content, read as they are meant, refused where they contradict themselves."""

from __future__ import annotations

import gzip
import io
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expert_maps import FormatError, Placement, PlacementError, generate_placement, read_placement
from expert_maps.files import Source
from expert_maps.formats import deepseek, golden, inspect_map, read_any_placement, recognising, vllm
from expert_maps.formats.safetensors import dump_safetensors
from expert_maps.formats.torch_files import dump_pt
from expert_maps.layered import LayeredPlacement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from expert_maps.formats.mapfile import MapFile

# DeepSeek EPLB's README: two layers of 12 experts in 16 slots on 8 ranks.
README = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
SMALL = [[0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 1, 2]]
COPIED = [[0, 1, 2, 0]]
MOE = Placement([[0, 1, 2, 3], [3, 2, 1, 0]], 2)


def source(content: object, name: str = "the file") -> Source:
    """Return a file: bytes and text as they are, a dict of arrays as .npz, an array as .npy, the rest as JSON."""
    if isinstance(content, bytes):
        return Source(name, content)
    if isinstance(content, str):
        return Source(name, content.encode())
    buffer = io.BytesIO()
    if isinstance(content, np.ndarray):
        np.save(buffer, content)
    elif isinstance(content, dict) and any(isinstance(value, np.ndarray) for value in content.values()):
        np.savez(buffer, **content)
    else:
        return Source(name, json.dumps(content).encode())
    return Source(name, buffer.getvalue())


def read(content: object, **said: Any) -> MapFile:  # noqa: ANN401 - options of inspect_map
    return inspect_map(source(content), **said)


def test_the_readme_of_deepseeks_eplb_is_read_from_each_form() -> None:
    placement = Placement(README, 8, num_logical_experts=12)
    arrays = deepseek.arrays(placement)
    assert arrays["log2phy"][0, 5].tolist() == [0, 2]
    assert arrays["logcnt"].sum(axis=1).tolist() == [16, 16]
    listed = {name: array.tolist() for name, array in arrays.items()}
    forms: list[object] = [
        arrays,
        listed,
        list(listed.values()),
        dump_safetensors(arrays),
        {"phy2log": README},
    ]
    for form in forms:
        found = read(form, ep_size=8)
        assert (found.form, found.placement) == ("deepseek", placement)
    assert read(README, format="deepseek", ep_size=8).placement == placement
    assert read(np.array(README), format="vllm", ep_size=8).placement == placement


def test_sglang_rows_are_all_layers_of_the_model() -> None:
    dense = [[0, 1, 2, 3]] * 2
    rows = {"physical_to_logical_map": dense + MOE.physical_to_logical.tolist()}
    found = read(rows, ep_size=2, layers="2-3")
    assert (found.form, found.placement, found.layers) == ("sglang", MOE, (2, 3))
    assert (found.num_hidden_layers, found.warnings) == (4, ())
    assert "dense layers left out: 0-1" in found.description
    unsaid = read(rows, ep_size=2)
    assert unsaid.has_dense_rows
    assert unsaid.placement.num_layers == 4
    assert "dense ones too" in unsaid.warnings[0]
    every = read(rows, ep_size=2, layers="all")
    assert (every.layers, every.has_dense_rows, every.warnings) == ((0, 1, 2, 3), False, ())
    assert "refuses a file with other keys: rank" in read({**rows, "rank": 0}, ep_size=2).warnings[0]
    with pytest.raises(FormatError, match="has no layers 4; it has 0-3"):
        read(rows, ep_size=2, layers=(3, 4))
    with pytest.raises(FormatError, match="has 4 rows; expected 61, one for each layer of the model"):
        read(rows, ep_size=2, num_hidden_layers=61)


def test_sglang_pt_files_are_read() -> None:
    pytest.importorskip("torch")
    content = dump_pt({"physical_to_logical_map": np.array(SMALL)})
    found = read(content, ep_size=2, layers="all")
    assert (found.form, found.placement) == ("sglang", Placement(SMALL, 2))


TRTLLM = "num_slots: 4\ninitial_global_assignments:\n  {}: [3, 2, 1, 0]\n  3: [0, 1, 2, 3]\nlayer_updates_per_iter: {}\n"


def test_tensorrt_llm_keys_are_absolute_layers_in_any_order() -> None:
    found = read(TRTLLM.format(4, 0), ep_size=2)
    assert (found.form, found.placement, found.layers, found.warnings) == ("tensorrt-llm", MOE, (3, 4), ())
    draft = read(TRTLLM.format(61, 1), ep_size=2, layers="3")
    assert draft.placement == Placement([[0, 1, 2, 3]], 2)
    assert "changes this map while it serves" in draft.warnings[0]
    assert "the layers 61 are in the file but not asked for" in draft.warnings[1]
    nested = {"moe_config": {"load_balancer": {"num_slots": 2, "initial_global_assignments": {"3": [1, 0]}}}}
    assert read(nested, ep_size=2).layers == (3,)
    flow = "{num_slots: 2, initial_global_assignments: {3: [1, 0]}, more: 1}"
    assert "refuses other keys: more" in read(flow, ep_size=2, format="tensorrt-llm").warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "num_slots: 3\ninitial_global_assignments: {3: [0, 1]}",
            "layer 3 has 2 experts; expected num_slots, 3",
        ),
        ("initial_global_assignments: {3: [0, 1]}", "num_slots is null"),
        ("num_slots: 2\ninitial_global_assignments: {}", "expected a list of experts for each layer"),
        (
            "num_slots: 2\ninitial_global_assignments: {x: [0, 1]}",
            'a key of initial_global_assignments is "x"',
        ),
        ("num_slots: 2\ninitial_global_assignments: {3: [0, 1.5]}", r"\[0\]\[1\] is \"1.5\""),
        ('{"num_slots": 1, "initial_global_assignments": {"3": [0], "03": [0]}}', "has layer 3 twice"),
        ("num_slots: 2\ninitial_global_assignments: {3: [0, 1]}\n? [1]\n: 2", "as a key"),
    ],
)
def test_malformed_load_balancers_are_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=f"the file: .*{message}"):
        read(text, ep_size=2)


def test_vllm_arrays_may_be_wider_and_in_another_order() -> None:
    placement = Placement([[0, 1, 2, 0]], 2)
    arrays = vllm.arrays(placement)
    wide = np.full((1, 3, 9), -1)
    wide[0, :, :2] = [[3, 0], [1, -1], [2, -1]]
    for found in (
        read(arrays, ep_size=2),
        read(arrays | {"logical_to_physical_map": wide}, ep_size=2),
        read({"phy2log": COPIED, "log2phy": wide[0:1].tolist(), "replica_count": [[2, 1, 1]]}, ep_size=2),
        read({"physical_to_logical_map": np.array(COPIED)}, ep_size=2),
        read(dump_safetensors(arrays), ep_size=2),
    ):
        assert (found.form, found.placement) == ("vllm", placement)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"log2phy": [[[0, 3], [2, -1], [2, -1]]]},
            r"log2phy at layer 0, expert 1 is \[2\]; expected \[1\] by phy2log",
        ),
        ({"log2phy": [[[0, -1], [1, -1], [2, -1]]]}, r"expert 0 is \[0\]; expected \[0, 3\]"),
        ({"log2phy": [[[0, 3], [1, -2], [2, -1]]]}, r"expert 1 is \[1, -2\]; expected \[1\]"),
        (
            {"logcnt": [[2, 1, 2]]},
            "logcnt at layer 0, expert 2 is 2; expected 1 by phy2log$",
        ),
        ({"logcnt": [[2, 1, 1, 0]]}, "as many experts"),
        ({"logcnt": [[2, 1]]}, "as many experts"),
        ({"logcnt": [[2, 1, 1], [1, 2, 1]]}, "expected 1 layers"),
        ({"logcnt": [[2, 1, 1.0]]}, r"logcnt has 1.0 at \[0, 2\], of type float; expected integers"),
        ({"log2phy": [[[0, 3], [1], [2, -1]]]}, "log2phy is ragged"),
        ({"logcnt": [], "log2phy": 3}, "log2phy"),
        ({"replica_count": [[2, 1, 1]]}, "which mean the same"),
        ({"phy2log": [[0, 1, 2, "0"]]}, r"phy2log\[0\]\[3\] is \"0\""),
        ({"phy2log": [[0, 1, 2, 0], [0, 1]]}, r"phy2log\[1\] has 2 entries; expected 4"),
        ({"phy2log": {}}, "expected a list of rows"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(changed: dict[str, object], message: str) -> None:
    good = {"phy2log": [[0, 1, 2, 0]], "log2phy": [[[0, 3], [1, -1], [2, -1]]], "logcnt": [[2, 1, 1]]}
    assert read(good, ep_size=2).placement.num_logical_experts == 3
    with pytest.raises(FormatError, match=f"the file: {message}|the file: .*{message}"):
        read(good | changed, ep_size=2)


def pattern(*layers: list[list[int]]) -> np.ndarray:
    """Return an omni-infer pattern from the ranks of each layer."""
    experts = 1 + max(expert for ranks in layers for held in ranks for expert in held)
    found = np.zeros((len(layers[0]), len(layers), experts), dtype=np.int32)
    for layer, ranks in enumerate(layers):
        for rank, held in enumerate(ranks):
            found[rank, layer, held] = 1
    return found


def test_omni_patterns_are_read_in_ascending_order() -> None:
    found = read(pattern([[0, 1], [2, 3]], [[0, 2], [3, 1]]))
    assert (found.form, found.placement) == ("omni", Placement([[0, 1, 2, 3], [0, 2, 1, 3]], 2))
    for dtype in (bool, np.float32, np.int64):
        assert read(pattern([[0, 1], [2, 3]]).astype(dtype)).placement == Placement([[0, 1, 2, 3]], 2)
    with pytest.raises(FormatError, match="2 ranks; expected 4"):
        read(pattern([[0], [1]]), ep_size=4)
    with pytest.raises(FormatError, match="layer 1 of the pattern has no experts"):
        read(pattern([[0], [1]], [[], []]))
    with pytest.raises(PlacementError, match="layer 1: expert 1 is missing"):
        read(pattern([[0], [1]], [[0], [0]]))
    with pytest.raises(FormatError, match=r"int64 \[2, 2, 2\]; expected an omni-infer pattern"):
        read(np.full((2, 2, 2), 2), format="omni")


def test_patterns_with_copies_in_some_layers_only_are_layered() -> None:
    uneven = pattern([[0, 1], [2, 3]], [[0, 1, 2], [2, 3, 0]])
    found = read_any_placement(source(uneven))
    assert isinstance(found, LayeredPlacement)
    assert found.slots_per_rank.tolist() == [[2, 2], [3, 3]]
    with pytest.raises(PlacementError, match=r"layer 1, rank 0: 3 slots, but layer 0 has 2.*`evaluate`"):
        read_placement(source(uneven))
    ragged = pattern([[0, 1], [2]], [[0, 1, 2], [2]])
    with pytest.raises(PlacementError, match=r"layer 1, rank 1: 1 slots|layer 1, rank 0: 3 slots"):
        read_any_placement(source(ragged))
    assert read_any_placement(source(ragged), allow_uneven=True).num_layers == 2


def test_vllm_plugin_das_holds_maps_of_several_models() -> None:
    maps = {
        "HYV4ForCausalLM": {"physical_to_logical_map": SMALL},
        "HYV4MTP": {"physical_to_logical_map": [[3, 2, 1, 0]]},
    }
    with pytest.raises(FormatError, match=r"holds 2 maps; choose one by its key .*'HYV4MTP'"):
        read({"version": 2, "model_maps": maps}, ep_size=2)
    found = read({"version": 2, "model_maps": maps}, ep_size=2, key="HYV4MTP")
    assert (found.form, found.placement, found.model) == (
        "vllm-plugin-das",
        Placement([[3, 2, 1, 0]], 2),
        "HYV4MTP",
    )
    for wrong, message in (
        ({}, "model_maps is"),
        ({"a": 1}, "expected an object with physical"),
        ([], "is "),
    ):
        with pytest.raises(FormatError, match=message):
            read({"model_maps": wrong}, ep_size=2)
    with pytest.raises(FormatError, match="no map 'x'"):
        read({"model_maps": maps}, ep_size=2, key="x")


ASCEND = json.loads(
    '{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, "device_list": ['
    '{"device_id": 0, "device_expert": [0, 1]}, {"device_id": 1, "device_expert": [2, 3]}]}]}'
)
GOLDEN = golden.document_of(Placement([[0, 1, 2, 3]], 2))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (ASCEND | GOLDEN, "vllm-ascend .'layer_list'. and golden .'physical_to_logical'"),
        ({"physical_to_logical_map": SMALL, "logical_count": SMALL}, "sglang .* and a load .'logical_count'"),
        ({"phy2log": SMALL, "physical_to_logical_map": SMALL}, "deepseek .* and sglang"),
        ({"model_maps": {}, "initial_global_assignments": {}}, "tensorrt-llm .* and vllm-plugin-das"),
        ("model_maps: {}\nlayer_list: []", "vllm-ascend .* and vllm-plugin-das"),
    ],
)
@pytest.mark.parametrize("form", [None, "vllm-ascend", "sglang"])
def test_two_kinds_of_map_in_one_file_are_refused(content: object, names: str, form: str | None) -> None:
    with pytest.raises(FormatError, match=f"the file has the keys of {names}.*; expected one kind"):
        read(content, format=form, ep_size=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"logical_count": SMALL}, "is a load .'logical_count'., not a map; `expert-maps plan`"),
        ({"a": 1, "b": 2}, "has the keys 'a', 'b', by which no map is known.*--from"),
        (SMALL, "list of lists without a name.*--from: deepseek or vllm"),
        (np.array(SMALL), r"one array int64 \[3, 4\] without a name.*--from"),
        (np.ones((2, 3, 4, 5)), "by which no map is known"),
        (np.arange(8).reshape(2, 2, 2), "by which no map is known"),
        ([1], r"the file is \[1\]; expected an object"),
        (b"\x1f\x8b\x08", "not a whole gzip file: it is cut off"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "compressed twice by gzip"),
        (b"\x80\x04K\x01.", "a Python pickle"),
        ("hello", "not valid JSON"),
        ("a: [1", "not valid JSON: .*; and as YAML: not valid YAML"),
    ],
)
def test_what_no_map_can_be_told_from_is_refused(content: object, message: str) -> None:
    with pytest.raises(FormatError, match=f"the file: .*{message}|{message}"):
        read(content)


def test_maps_packed_by_gzip_are_read_within_the_same_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(ASCEND).encode()
    path = tmp_path / "map.json.gz"
    path.write_bytes(packed := gzip.compress(text, mtime=0))
    plain = read(ASCEND)
    assert inspect_map(path).placement == inspect_map(Source("the file", packed)).placement
    assert inspect_map(path).placement == plain.placement
    monkeypatch.setattr("expert_maps.limits.MAX_JSON_BYTES", len(text) - 1)
    with pytest.raises(
        FormatError, match=f"map.json.gz: has {len(text)} bytes; expected at most {len(text) - 1}"
    ):
        inspect_map(path)


@pytest.mark.parametrize("form", recognising.FORM_NAMES)
@pytest.mark.parametrize(
    "content", [{}, [], [[]], 3, {"layer_list": {}}, np.zeros(3), {"a": np.zeros((2, 2))}]
)
def test_a_format_that_is_asked_for_but_is_not_there_is_one_error(form: str, content: object) -> None:
    with pytest.raises(FormatError, match="the file: "):
        read(content, format=form, ep_size=2)


def test_formats_and_counts_that_are_missing_or_wrong_are_named() -> None:
    with pytest.raises(FormatError, match="format is 'nccl'; expected one of expert-maps, vllm-ascend"):
        read(ASCEND, format="nccl")
    small = {"phy2log": SMALL}
    for said, message in (
        ({}, r"does not say how many ranks share its 4 slots; give ep_size \(--ep-size\)"),
        ({"ep_size": 3}, "4 slots of a layer do not divide by ep_size 3"),
        ({"ep_size": 0}, "do not divide by ep_size 0"),
        (
            {"ep_size": 2, "layers": "3-4"},
            "has 3 rows, one for each MoE layer; expected 2, for the layers 3-4",
        ),
        ({"ep_size": 2, "layers": "4-3"}, "layers are '4-3'"),
        ({"ep_size": 2, "layers": "0-99999999"}, "layers are '0-99999999'"),
        ({"ep_size": 2, "layers": (2, 1)}, "layers have 1 after 2"),
        ({"ep_size": 2, "layers": ()}, "layers are 0 in number"),
    ):
        with pytest.raises(FormatError, match=message):
            read(small, **said)
    with pytest.raises(FormatError, match="file has 2 ranks; expected 4"):
        read(ASCEND, ep_size=4)
    with pytest.raises(FormatError, match="the file has 3 experts; expected 4, as asked"):
        read({"phy2log": [[0, 1, 2]], "logcnt": [[1, 1, 1]]}, ep_size=1, num_logical_experts=4)
    absolute = ASCEND | {"layer_list": [ASCEND["layer_list"][0] | {"layer_id": 3}]}
    assert read(absolute).layers == (3,)
    with pytest.raises(FormatError, match="is for the layers 3; expected 4, as asked"):
        read(absolute, layers="4")
    assert read(ASCEND, layers="5").layers == (5,)


def edited(key: str, place: tuple[int, ...], value: int) -> dict[str, Any]:
    document = json.loads(json.dumps(GOLDEN))
    entry = document[key]
    for index in place[:-1]:
        entry = entry[index]
    entry[place[-1]] = value
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (edited("log2phy", (0, 1, 2), 3), "log2phy at layer 0, rank 1, expert 2 is 3; expected 2"),
        (
            edited("global_expert_map", (0, 0, 3), 0),
            "global_expert_map at layer 0, rank 0, expert 3 is 0; expected -1",
        ),
        (GOLDEN | {"log2phy": [[[0]]]}, r"log2phy has shape \[1, 1, 1\]; expected \[1, 2, 4\]"),
        (GOLDEN | {"log2phy": "x"}, "log2phy is"),
        (GOLDEN | {"num_layers": 10**18}, "num_layers is 1000000000000000000; expected an integer from 1 to"),
        (
            GOLDEN | {"num_layers": 3, "physical_to_logical": SMALL[:2]},
            "physical_to_logical has 2 rows; expected 1 or num_layers 3",
        ),
        (GOLDEN | {"num_logical_experts": 2 * 10**7}, "num_logical_experts is 20000000"),
        (
            GOLDEN | {"slots_per_rank": [2**63 - 1, 2**63 - 1, 4]},
            r"slots_per_rank\[0\] is 9223372036854775807",
        ),
        (GOLDEN | {"slots_per_rank": [2, 3]}, "slots_per_rank add up to 5; expected 4"),
        (GOLDEN | {"slots_per_rank": 2}, "slots_per_rank is 2; expected a list"),
        (GOLDEN | {"physical_to_logical": [[0, 1], [2]]}, r"physical_to_logical\[1\] has 1 entries"),
        (GOLDEN | {"physical_to_logical": [[[0]]]}, r"physical_to_logical\[0\]\[0\] is"),
    ],
)
def test_golden_maps_are_compared_with_what_follows_from_them(document: dict[str, Any], message: str) -> None:
    assert read(GOLDEN).form == "golden"
    with pytest.raises(FormatError, match=f"the file: {message}"):
        read(document)


def test_a_golden_row_stands_for_all_layers() -> None:
    placement = generate_placement("ring", num_experts=6, ep_size=3, num_redundant_experts=3, num_layers=4)
    document = golden.document_of(placement)
    assert len(document["log2phy"]) == 1  # type: ignore[arg-type]
    assert read(document).placement == placement


@pytest.mark.parametrize(
    "content",
    [
        lambda: {"phy2log": [[0]] * 5000},
        lambda: {"phy2log": np.zeros((3, 2**23), dtype=np.int8)},
        lambda: {"phy2log": [[0, 1]], "log2phy": np.zeros((1, 2, 2**25), dtype=np.int8)},
        lambda: {"phy2log": np.array([[2**63]], dtype=np.uint64)},
        lambda: np.zeros((1, 5000, 1), dtype=np.int8),
        lambda: "initial_global_assignments: {3: [0]}\nnum_slots: 99999999999999999999",
        lambda: {"moe_layer_count": 5000, "layer_list": [0] * 5000},
    ],
)
def test_counts_that_are_too_large_end_soon(content: Callable[[], object]) -> None:
    made = content()
    begin = time.process_time()
    with pytest.raises(FormatError, match="the file: "):
        read(made, ep_size=1)
    assert time.process_time() - begin < 5


def test_rows_of_all_layers_are_not_taken_for_moe_layers_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "sglang.json"
    path.write_text(json.dumps({"physical_to_logical_map": [[0, 1, 1, 0], [1, 0, 0, 1]]}))
    for read in (read_placement, read_any_placement):
        with pytest.raises(FormatError, match=r"sglang\.json: SGLang.*dense layers too; expected layers"):
            read(path, ep_size=2)
        assert read(path, ep_size=2, layers="all").num_layers == 2
        assert read(path, ep_size=2, layers="1").num_layers == 1
    found = inspect_map(path, ep_size=2)
    assert found.has_dense_rows
    assert found.warnings
