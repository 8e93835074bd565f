# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from strategies import placements

from expert_maps import (
    ExpertMapsError,
    FormatError,
    Placement,
    PlacementError,
    generate_placement,
    read_placement,
    write_placement,
)
from expert_maps.formats import vllm_ascend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXAMPLE: dict[str, Any] = {
    "moe_layer_count": 1,
    "layer_list": [
        {
            "layer_id": 0,
            "device_count": 2,
            "device_list": [
                {"device_id": 0, "device_expert": [7, 2, 0, 3, 5]},
                {"device_id": 1, "device_expert": [6, 1, 4, 7, 2]},
            ],
        }
    ],
}


def test_the_example_gives_the_maps_worked_out_by_hand() -> None:
    placement = vllm_ascend.parse(EXAMPLE)
    assert placement.expert_map(0, 1).tolist() == [-1, 1, 4, -1, 2, -1, 0, 3]
    assert placement.log2phy(0, 1).tolist() == [2, 6, 9, 3, 7, 4, 5, 8]
    assert placement.num_redundant_experts == 2


@given(placements())
def test_what_is_written_is_read_back(placement: Placement) -> None:
    text = vllm_ascend.dumps(placement)
    document = json.loads(text)
    assert vllm_ascend.parse(document, num_logical_experts=placement.num_logical_experts) == placement
    assert document["moe_layer_count"] == placement.num_layers


def test_uneven_layouts_without_redundancy_are_read_back_without_a_flag(tmp_path: Path) -> None:
    for layout in ("linear", "round_robin", "ring", "append"):
        placement = generate_placement(layout, num_experts=10, ep_size=4, num_layers=2)
        write_placement(placement, tmp_path / "map.json")
        assert read_placement(tmp_path / "map.json") == placement


def edit(path: str, value: object = "DELETE") -> Callable[[dict[str, Any]], None]:
    """Return an edit of the document at a path like ``layer_list.0.device_count``."""

    def apply(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node: Any = document
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        key: Any = int(last) if isinstance(node, list) else last
        if value == "DELETE":
            del node[key]
        else:
            node[key] = value

    return apply


DEVICE = "layer_list.0.device_list.1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("moe_layer_count"), "has no key 'moe_layer_count'"),
        (edit("layer_list"), "has no key 'layer_list'"),
        (edit("layer_list.0.layer_id"), r"layer_list\[0\] has no key 'layer_id'"),
        (edit("layer_list.0.device_count"), "has no key 'device_count'"),
        (edit("layer_list.0.device_list"), "has no key 'device_list'"),
        (edit(f"{DEVICE}.device_id"), r"layer_list\[0\].device_list\[1\] has no key 'device_id'"),
        (edit(f"{DEVICE}.device_expert"), "has no key 'device_expert'"),
        (edit("moe_layer_count", 2), "moe_layer_count is 2, but layer_list has 1 layers"),
        (edit("moe_layer_count", "1"), 'moe_layer_count is "1"; expected an integer'),
        (edit("moe_layer_count", True), "moe_layer_count is true"),
        (edit("layer_list", {}), "layer_list is {}; expected a list"),
        (edit("layer_list.0", [1]), "expected an object"),
        (edit("layer_list.0.device_count", 3), "device_count is 3, but device_list has 2"),
        (edit("layer_list.0.layer_id", -1), "layer_id is -1; expected more than -1"),
        (edit(f"{DEVICE}.device_id", 0), "device_id is 0; expected 1: devices are read by position"),
        (edit(f"{DEVICE}.device_expert", "67"), 'device_expert is "67"; expected a list'),
        (edit(f"{DEVICE}.device_expert.2", 4.0), r"device_expert\[2\] is 4.0; expected an integer"),
        (edit(f"{DEVICE}.device_expert.2", None), "null; expected an integer"),
        (edit(f"{DEVICE}.device_expert.2", 10**30), "expected an integer"),
    ],
)
def test_schema_errors_name_the_place(change: Callable[[dict[str, Any]], None], message: str) -> None:
    document = copy.deepcopy(EXAMPLE)
    change(document)
    with pytest.raises(FormatError, match=message):
        vllm_ascend.parse(document)


def test_empty_lists_are_refused() -> None:
    empty = {"layer_id": 0, "device_count": 0, "device_list": []}
    hollow = {"layer_id": 0, "device_count": 1, "device_list": [{"device_id": 0, "device_expert": []}]}
    for layers in ([], [empty], [hollow]):
        with pytest.raises(FormatError, match="expected at least one"):
            vllm_ascend.parse({"moe_layer_count": len(layers), "layer_list": layers})


def two_layers() -> dict[str, Any]:
    document = copy.deepcopy(EXAMPLE)
    document["layer_list"].append(copy.deepcopy(document["layer_list"][0]) | {"layer_id": 1})
    document["moe_layer_count"] = 2
    return document


def test_layer_ids_may_be_absolute_but_must_ascend() -> None:
    document = two_layers()
    for first, second in ((3, 4), (0, 2)):
        document["layer_list"][0]["layer_id"], document["layer_list"][1]["layer_id"] = first, second
        assert vllm_ascend.parse(document).num_layers == 2
    for first, second in ((1, 0), (1, 1)):
        document["layer_list"][0]["layer_id"], document["layer_list"][1]["layer_id"] = first, second
        with pytest.raises(FormatError, match="ids must ascend"):
            vllm_ascend.parse(document)


def test_layers_of_different_device_counts_are_refused() -> None:
    document = two_layers()
    document["layer_list"][1] = {
        "layer_id": 1,
        "device_count": 1,
        "device_list": [{"device_id": 0, "device_expert": list(range(8))}],
    }
    with pytest.raises(FormatError, match=r"layer_list\[1\] has 1 devices; expected 2"):
        vllm_ascend.parse(document)


def test_rules_of_placements_apply_to_files() -> None:
    document = copy.deepcopy(EXAMPLE)
    edit(f"{DEVICE}.device_expert", [6, 1, 4, 7])(document)
    with pytest.raises(PlacementError, match="layer 0, rank 1: 4 slots; expected 5"):
        vllm_ascend.parse(document)
    assert vllm_ascend.parse(document, allow_uneven=True).slots_per_rank.tolist() == [5, 4]
    edit(f"{DEVICE}.device_expert", [6, 1, 4, 6, 2])(document)
    with pytest.raises(PlacementError, match="slot 3: expert 6 stands twice on this rank"):
        vllm_ascend.parse(document)
    assert vllm_ascend.parse(document, allow_duplicates=True).replica_count[0, 6] == 2


def test_files_are_named_in_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.json").write_text('{"moe_layer_count": 1,')
    with pytest.raises(FormatError, match=r"bad.json: not valid JSON: .* at line 1, column 23"):
        read_placement(tmp_path / "bad.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match=r"absent.json \(in .*\): no such file"):
        read_placement("absent.json")
    with pytest.raises(FormatError, match="is a folder"):
        read_placement(tmp_path)
    with pytest.raises(FormatError, match="the file name is empty"):
        read_placement("")
    with pytest.raises(FormatError, match="cannot be read"):
        read_placement("a\0b.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe{}", "not UTF-8 text at byte 0"),
        (b"[" * 100_000, "nested 100000 deep; expected at most 64"),
        (b'{"moe_layer_count": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "key 'a' stands twice"),
        (b"[1, 2]", r"the file is \[1, 2\]; expected an object"),
        (b"null", "the file is null"),
        (b'{"moe_layer_count": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_what_is_no_map_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_placement(path)


def test_a_byte_order_mark_is_forgiven(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text("\ufeff" + json.dumps(EXAMPLE), encoding="utf-8")
    assert read_placement(tmp_path / "map.json").num_layers == 1


def test_only_json_names_are_written(tmp_path: Path) -> None:
    placement = vllm_ascend.parse(EXAMPLE)
    for name in ("map", "map.txt", "map.json.gz", ""):
        with pytest.raises(ExpertMapsError, match=r"ends in \.json"):
            write_placement(placement, tmp_path / name if name else "")
    assert not list(tmp_path.iterdir())
