# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The project's own file: what it says of itself is true, and vllm-ascend reads it as it is."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from strategies import placements

from expert_maps import FormatError, Placement, PlacementError, read_placement, write_placement
from expert_maps.files import Source
from expert_maps.formats import inspect_map, native, vllm_ascend
from expert_maps.layered import LayeredPlacement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from expert_maps.formats.mapfile import MapFile

PLACEMENT = Placement([[0, 1, 2, 0], [2, 1, 0, 1]], 2)
FACTS: dict[str, Any] = {
    "model": "tiny",
    "layers": (1, 3),
    "num_hidden_layers": 4,
    "provenance": {"command": "plan", "policy": "balanced", "load": "sha256:12"},
}


def read(document: object, **said: Any) -> MapFile:  # noqa: ANN401 - options of inspect_map
    return inspect_map(Source("map.json", json.dumps(document).encode()), **said)


_KINDS = {"object": dict, "array": list, "string": str, "integer": int}
_LIMITS: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, kind: isinstance(value, _KINDS[kind]) and not isinstance(value, bool),
    "required": lambda value, names: set(names) <= set(value),
    "minimum": lambda value, least: value >= least,
    "minItems": lambda value, least: len(value) >= least,
    "maxLength": lambda value, most: len(value) <= most,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "const": lambda value, constant: value == constant,
}
_NOTES = {"$schema", "$id", "$defs", "title", "description"}


def check(value: Any, rule: dict[str, Any], root: dict[str, Any], where: str = "") -> None:  # noqa: ANN401
    """Check a value by the keywords that the schema uses; any other keyword is an error of this test."""
    for keyword, wanted in rule.items():
        if keyword in _LIMITS:
            assert _LIMITS[keyword](value, wanted), f"{where}: {keyword} {wanted}"
        elif keyword == "anyOf":
            assert any(passes(value, each, root) for each in wanted), where
        elif keyword not in _NOTES:
            for entry, part, name in parts(value, keyword, wanted, root):
                check(entry, part, root, f"{where}.{name}")


def parts(
    value: Any,  # noqa: ANN401
    keyword: str,
    wanted: Any,  # noqa: ANN401
    root: dict[str, Any],
) -> list[tuple[Any, dict[str, Any], object]]:
    """Return the entries of a value with the rule of each."""
    if keyword == "$ref":
        return [(value, root["$defs"][wanted.removeprefix("#/$defs/")], "")]
    if keyword == "items":
        return [(entry, wanted, index) for index, entry in enumerate(value)]
    if keyword == "additionalProperties":
        return [(entry, wanted, name) for name, entry in value.items()]
    assert keyword == "properties", keyword
    return [(value[name], wanted[name], name) for name in wanted.keys() & value.keys()]


def passes(value: object, rule: dict[str, Any], root: dict[str, Any]) -> bool:
    try:
        check(value, rule, root)
    except AssertionError:
        return False
    return True


@settings(max_examples=25)
@given(placements())
def test_what_is_written_holds_to_the_schema_and_is_read_back(placement: Placement) -> None:
    document = json.loads(native.dumps(placement))
    schema = native.schema()
    check(document, schema, schema)
    found = read(document)
    assert (found.form, found.placement) == ("expert-maps", placement)
    assert json.loads(vllm_ascend.dumps(placement)) == {
        key: value for key, value in document.items() if key != native.OBJECT
    }


def test_the_facts_are_carried_and_hold_to_the_schema() -> None:
    document = json.loads(native.dumps(PLACEMENT, num_shared_experts=1, **FACTS))
    schema = native.schema()
    check(document, schema, schema)
    found = read(document)
    assert (found.model, found.layers, found.num_hidden_layers) == ("tiny", (1, 3), 4)
    assert found.num_shared_experts == 1
    assert {"tool", "command", "policy", "load"} == set(found.provenance)
    assert found.provenance["tool"].startswith("expert-maps ")
    changes: tuple[dict[str, Any], ...] = (
        {"version": 1},
        {"digest": "0"},
        {"facts_digest": 0},
        {"slots_per_rank": []},
        {"provenance": {}},
        {"layers": [-1]},
    )
    for change in changes:
        wrong = document | {native.OBJECT: document[native.OBJECT] | change}
        assert not passes(wrong, schema, schema), change


def test_layers_that_differ_are_written_and_read_back() -> None:
    layered = LayeredPlacement.from_rank_lists([[[0, 1], [2, 0]], [[0, 2, 1], [1]]], allow_uneven=True)
    document = json.loads(native.dumps(layered))
    check(document, native.schema(), native.schema())
    assert document[native.OBJECT]["slots_per_rank"] == [[2, 2], [3, 1]]
    assert read(document, allow_uneven=True).placement == layered
    with pytest.raises(PlacementError, match="layer 1, rank 1: 1 slots"):
        read(document)


def test_vllm_ascends_reader_finds_what_it_looks_for(tmp_path: Path) -> None:
    write_placement(PLACEMENT, tmp_path / "map.json", **FACTS)
    text = (tmp_path / "map.json").read_text()
    data = json.loads(text)
    # As vllm-ascend does it, by position (eplb_utils.py of 0.18.0 to 0.30.0).
    for layer in range(data["moe_layer_count"]):
        held = [device["device_expert"] for device in data["layer_list"][layer]["device_list"]]
        assert [expert for slots in held for expert in slots] == PLACEMENT.physical_to_logical[layer].tolist()
    # A line per rank, before and after as without the object.
    plain = vllm_ascend.dumps(PLACEMENT)
    assert text.startswith(plain[:-2])
    assert text.count("\n") == plain.count("\n") + 1
    write_placement(PLACEMENT, tmp_path / "again.json", **FACTS)
    assert (tmp_path / "again.json").read_text() == text
    assert read_placement(tmp_path / "map.json") == PLACEMENT


def change(path: str, value: object) -> dict[str, Any]:
    document = copy.deepcopy(json.loads(native.dumps(PLACEMENT, **FACTS)))
    *parents, last = path.split(".")
    node: Any = document
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if value is None:
        node.pop(last, None)
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return document


SLOTS = "layer_list.1.device_list.0.device_expert"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (SLOTS, [1, 2], "expert_maps.digest is .*the file was changed after it was written.*--ignore-digest"),
        ("expert_maps.digest", "00", "expert_maps.digest is .*; if that was meant"),
        ("expert_maps.digest", None, "expert_maps.digest is null"),
        ("expert_maps.num_layers", 3, "expert_maps.num_layers is 3, but the slots have 2"),
        ("expert_maps.ep_size", True, "expert_maps.ep_size is true, but the slots have 2"),
        ("expert_maps.slots_per_rank", [4, 0], r"slots_per_rank is \[4, 0\], but the slots have \[2, 2\]"),
        ("expert_maps.version", 3, "version is 3; this release reads 1 to 2: update"),
        ("expert_maps.version", 1, "facts_digest is .*the file was changed after it was written"),
        ("expert_maps.version", None, "version is null"),
        ("expert_maps.num_logical_experts", "3", 'num_logical_experts is "3"'),
        ("expert_maps", [1], r"expert_maps is \[1\]; expected an object"),
        ("expert_maps.layers", [1], "expected 2 layer numbers"),
        ("expert_maps.layers", [3, 1], "layers have 1 after 3"),
        ("expert_maps.num_hidden_layers", 3, "num_hidden_layers is 3; expected at least 4"),
        ("expert_maps.facts_digest", None, "facts_digest is null, but expert_maps has .*--ignore-digest"),
        ("expert_maps.layers", [0, 3], "facts_digest is .*the file was changed after it was written"),
        ("expert_maps.more", 1, "facts_digest is .*the file was changed after it was written"),
        ("layer_list.1.layer_id", 2, "layer_id are 0,2; expected 0 to 1, or expert_maps.layers"),
        ("expert_maps.num_shared_experts", 3, "num_shared_experts is 3; expected an integer from 0 to 2"),
        ("expert_maps.provenance", 3, "provenance is 3; expected an object"),
        ("expert_maps.provenance.load", 3, "provenance.load is 3; expected text"),
        ("expert_maps.model", "a\x1b[31m", "model is .*expected text of at most 1000 printable"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(FormatError, match=f"map.json: .*{message}"):
        read(change(path, value))


def test_slots_that_break_a_rule_are_named_before_the_digest() -> None:
    with pytest.raises(PlacementError, match="layer 1, rank 0, slot 1: expert 9 is out of range"):
        read(change(SLOTS, [2, 9]))
    # The file says how many experts there are: a missing last one is noticed.
    with pytest.raises(PlacementError, match="layer 1: expert 2 is missing"):
        read(change(SLOTS, [0, 1]))
    with pytest.raises(PlacementError, match="expert 3 is missing"):
        read(json.loads(native.dumps(PLACEMENT)), num_logical_experts=4)


def leaves(node: Any, path: str = "") -> list[tuple[str, Any]]:  # noqa: ANN401
    """Return each number and text of a document with its path."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if entries is None:
        return [(path[1:], node)]
    return [leaf for key, value in entries for leaf in leaves(value, f"{path}.{key}")]


def test_no_number_or_word_can_change_unnoticed() -> None:
    document = json.loads(native.dumps(PLACEMENT, num_shared_experts=1, **FACTS))
    places = [path for path, _ in leaves(document)]
    assert len(places) > 30
    for path, value in leaves(document):
        other: list[object] = [value + 1, value - 1] if isinstance(value, int) else [value + "x", value[:-1]]
        for changed in other:
            with pytest.raises((FormatError, PlacementError)):
                read(change(path, changed))


def test_a_file_of_the_first_version_is_read() -> None:
    document = json.loads(native.dumps(PLACEMENT, **FACTS))
    facts = document[native.OBJECT]
    facts["version"] = 1
    del facts[native.FACTS_DIGEST]
    schema = native.schema(1)
    check(document, schema, schema)
    found = read(document)
    assert (found.placement, found.layers) == (PLACEMENT, (1, 3))
    facts["digest"] = "0" * 64
    with pytest.raises(FormatError, match="digest is"):
        read(document)


def test_the_digest_of_the_facts_is_what_the_schema_says() -> None:
    document = json.loads(native.dumps(PLACEMENT, **FACTS))
    facts = document[native.OBJECT]
    said = facts.pop("facts_digest")
    text = "expert-maps facts 1\n" + json.dumps(facts, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == said


def test_a_change_by_hand_can_be_taken_on_purpose() -> None:
    found = read(change(SLOTS, [1, 2]), ignore_digest=True)
    assert found.placement == Placement([[0, 1, 2, 0], [1, 2, 0, 1]], 2)
    bare = {key: value for key, value in change(SLOTS, [1, 2]).items() if key != native.OBJECT}
    assert read(bare).form == "vllm-ascend"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"layers": (3,)}, "expected 2, one for each row"),
        (
            {"layers": (3, 4), "num_hidden_layers": 4},
            "layers end at 4; expected less than num_hidden_layers, 4",
        ),
        ({"model": "x" * 1001}, "model is"),
        ({"num_shared_experts": 3}, "num_shared_experts is 3"),
        ({"provenance": {str(index): "" for index in range(33)}}, "34 entries; expected at most 32"),
    ],
)
def test_facts_that_contradict_the_placement_are_not_written(
    tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        write_placement(PLACEMENT, tmp_path / "map.json", **facts)
    assert not list(tmp_path.iterdir())
