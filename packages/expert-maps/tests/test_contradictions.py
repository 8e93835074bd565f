# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A map file that contradicts itself: `check` lists each place beside all other violations, every other command refuses."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertMapsError, Placement
from expert_maps.files import Source
from expert_maps.formats import deepseek, golden, inspect_map, native, vllm_ascend
from expert_maps.formats.examining import examine_map
from expert_maps.formats.mapfile import Asked
from expert_maps.layered import LayeredPlacement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Document = dict[str, Any]

PLACEMENT = Placement([[0, 1, 2, 0], [2, 1, 0, 1]], 2)
COUNTS = ("num_layers", "num_logical_experts", "num_physical_experts", "num_redundant_experts", "ep_size")


def ascend() -> Document:
    return json.loads(vllm_ascend.dumps(PLACEMENT))


def own() -> Document:
    return json.loads(native.dumps(PLACEMENT, layers=(1, 3), num_hidden_layers=4))


def with_maps() -> Document:
    return copy.deepcopy(golden.document_of(PLACEMENT))


def arrays() -> Document:
    return {name: array.tolist() for name, array in deepseek.arrays(PLACEMENT).items()}


def load_balancer() -> Document:
    rows = {
        str(layer): row for layer, row in zip((3, 4), PLACEMENT.physical_to_logical.tolist(), strict=True)
    }
    return {"num_slots": 4, "initial_global_assignments": rows}


def put(path: str, value: object) -> Callable[[Document], Any]:
    """Return what changes a document at a path, such as ``layer_list.0.layer_id``."""

    def change(document: Document) -> None:
        *parents, last = path.split(".")
        node: Any = document
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[int(last) if isinstance(node, list) else last] = value

    return change


# Which form, what is changed, and for each violation its kind, layer, rank, expert, what is found and what is expected.
CASES: dict[str, tuple[Callable[[], Document], Callable[[Document], Any], list[tuple[object, ...]]]] = {
    "layer count": (ascend, put("moe_layer_count", 3), [("contradiction", None, None, None, 3, 2)]),
    "layer id": (
        ascend,
        put("layer_list.1.layer_id", 0),
        [("contradiction", 1, None, None, 0, None)],
    ),
    "rank count": (
        ascend,
        put("layer_list.1.device_count", 3),
        [("contradiction", 1, None, None, 3, 2)],
    ),
    "rank id": (
        ascend,
        put("layer_list.1.device_list.0.device_id", 1),
        [("contradiction", 1, 0, None, 1, 0)],
    ),
    "a rank too few": (
        ascend,
        lambda document: document["layer_list"][1]["device_list"].pop(),
        [
            ("contradiction", 1, None, None, 2, 1),
            ("contradiction", 1, None, None, 1, 2),
            ("missing", 1, None, 0, None, None),
        ],
    ),
    "a layer without experts": (
        ascend,
        lambda document: [
            device.update(device_expert=[]) for device in document["layer_list"][1]["device_list"]
        ],
        [
            ("uneven", 1, 0, None, 0, 2),
            ("uneven", 1, 1, None, 0, 2),
            ("missing", 1, None, 0, None, None),
            ("missing", 1, None, 1, None, None),
            ("missing", 1, None, 2, None, None),
        ],
    ),
    "several at once": (
        ascend,
        lambda document: [
            put("moe_layer_count", 1)(document),
            put("layer_list.0.device_list.1.device_expert.1", 9)(document),
        ],
        [("contradiction", None, None, None, 1, 2), ("out_of_range", 0, 1, 9, 9, "0 … 2")],
    ),
    "own counts": (
        own,
        put("expert_maps.ep_size", 3),
        [
            ("contradiction", None, None, None, 3, 2),
            ("contradiction", None, None, None, "facts", "facts"),
        ],
    ),
    "own digest, after a change of a slot": (
        own,
        put("layer_list.0.device_list.1.device_expert.1", 1),
        [("contradiction", None, None, None, "digest", "digest")],
    ),
    "own digest, and a rule": (
        own,
        put("layer_list.0.device_list.1.device_expert.1", 2),
        [("duplicate", 0, 1, 2, None, None), ("contradiction", None, None, None, "digest", "digest")],
    ),
    "own layers": (
        own,
        put("expert_maps.layers", [0, 3]),
        [("contradiction", None, None, None, "facts", "facts")],
    ),
    "own layers, too few": (
        own,
        put("expert_maps.layers", [3]),
        [
            ("contradiction", None, None, None, None, "2 layer numbers"),
            ("contradiction", None, None, None, "facts", "facts"),
        ],
    ),
    "one log2phy": (
        with_maps,
        put("log2phy.1.0.2", 3),
        [("contradiction", 1, 0, 2, 3, 0)],
    ),
    "one expert_map, one log2phy and a missing expert": (
        with_maps,
        lambda document: [
            put("log2phy.0.1.1", 2)(document),
            put("global_expert_map.1.1.2", 1)(document),
            put("physical_to_logical.0.2", 1)(document),
        ],
        [
            ("missing", 0, None, 2, None, None),
            ("contradiction", 0, 1, 1, -1, 0),
            ("contradiction", 0, 1, 2, 0, -1),
            ("contradiction", 1, 1, 2, 1, -1),
            ("contradiction", 0, 0, 2, 2, -1),
            ("contradiction", 0, 1, 2, 2, -1),
        ],
    ),
    "golden shape": (
        with_maps,
        lambda document: document["log2phy"][0].pop() and document["log2phy"][1].pop(),
        [("contradiction", None, None, None, "[2, 1, 3]", "[2, 2, 3]")],
    ),
    "golden rows": (
        with_maps,
        lambda document: document.pop("log2phy") and put("num_layers", 3)(document),
        [("contradiction", None, None, None, 2, 3)],
    ),
    "golden slots": (
        with_maps,
        put("slots_per_rank", [2, 3]),
        [("contradiction", None, None, None, 5, 4), ("contradiction", None, None, None, None, None)],
    ),
    "counts of copies": (arrays, put("logcnt.1.2", 2), [("contradiction", 1, None, 2, 2, 1)]),
    "copies": (arrays, put("log2phy.0.0", [0, 1]), [("contradiction", 0, None, 0, "[0, 1]", "[0, 3]")]),
    "two names": (
        arrays,
        put("replica_count", [[2, 1, 1], [1, 2, 2]]),
        [("contradiction", None, None, None, 2, 1), ("contradiction", 1, None, 2, 2, 1)],
    ),
    "slots of a layer": (
        load_balancer,
        put("num_slots", 5),
        [("contradiction", 0, None, None, 4, 5), ("contradiction", 1, None, None, 4, 5)],
    ),
}


def seen(violation: Document) -> tuple[object, ...]:
    """Return what `CASES` says of a violation; a digest's value by its name."""
    values = tuple(violation[key] for key in ("kind", "layer", "rank", "expert", "found", "expected"))
    for name, word in (("expert_maps.facts_digest", "facts"), ("expert_maps.digest", "digest")):
        if violation["message"].startswith(name):
            assert all(len(value) == 64 for value in values[4:])
            return (*values[:4], word, word)
    return values


@pytest.mark.parametrize("case", CASES)
def test_check_lists_each_contradiction_beside_other_violations(tmp_path: Path, case: str) -> None:
    make, change, expected = CASES[case]
    document = make()
    path = tmp_path / "map.json"
    ranks = ("--ep-size", 2)
    path.write_text(json.dumps(document))
    assert run("check", path, *ranks).exit_code == 0
    change(document)
    path.write_text(json.dumps(document))
    result = run("check", path, *ranks, "--json")
    assert result.exit_code == 1, result.output
    told = json.loads(result.stdout)
    assert [seen(violation) for violation in told["violations"]] == expected
    assert told["num_violations"] == len(expected)
    assert sum(told["kinds"].values()) == len(expected)
    text = run("check", path, *ranks)
    assert text.exit_code == 1
    assert len(text.stderr.splitlines()) == len(expected) + 1
    # Whoever uses it refuses it.
    for command in (("show", path), ("convert", path, tmp_path / "out.npy", "--to", "omni")):
        assert_one_line_error(run(*command, *ranks), "map.json")
    assert not (tmp_path / "out.npy").exists()


def test_two_kinds_of_map_are_each_checked_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    # A golden part that is right hides no vllm-ascend part with a missing expert.
    document = with_maps() | ascend()
    path.write_text(json.dumps(document))
    keys = "the file has the keys of vllm-ascend ('layer_list') and golden ('physical_to_logical')"
    found = json.loads(run("check", path, "--json").stdout)["violations"]
    assert [violation["message"] for violation in found] == [
        f"{keys}; expected one kind of map: remove the others"
    ]
    put("layer_list.0.device_list.1.device_expert", [1, 0])(document)
    path.write_text(json.dumps(document))
    result = run("check", path, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [violation["message"] for violation in told["violations"][1:]] == [
        "as vllm-ascend: layer 0: expert 2 is missing; expected on at least one rank",
        "as golden: other slots than as vllm-ascend",
    ]
    assert told["kinds"] == {"contradiction": 2, "missing": 1}
    assert_one_line_error(run("show", path), keys)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"logical_count": [[1, 2]]}, None),
        (
            {"model_maps": 3},
            "as vllm-plugin-das: model_maps is 3; expected an object with a map for each model",
        ),
    ],
)
def test_another_kind_that_cannot_be_read_is_one_more_violation(
    tmp_path: Path, extra: Document, message: str | None
) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(ascend() | extra))
    result = run("check", path)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == (2 if message is None else 3)
    assert "the file has the keys of vllm-ascend" in result.stderr
    assert message is None or message in result.stderr


@pytest.mark.parametrize(
    "document",
    [
        {"layer_list": {}, "physical_to_logical": 3},
        {"layer_list": [], "moe_layer_count": 0},
        {"layer_list": [{"layer_id": 0, "device_count": 0, "device_list": []}], "moe_layer_count": 1},
        {"logical_count": [[1, 2]]},
        {"expert_maps": {"version": 9}, **ascend()},
    ],
)
def test_what_is_no_map_at_all_is_an_error(tmp_path: Path, document: Document) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(document))
    assert_one_line_error(run("check", path), "map.json: ")


def test_a_table_that_is_all_wrong_is_counted_and_listed_in_part(tmp_path: Path) -> None:
    document = with_maps()
    document["log2phy"] = [[[9] * 3] * 2] * 2
    path = tmp_path / "map.json"
    path.write_text(json.dumps(document))
    lines = run("check", path, "--all").stderr.splitlines()
    assert len(lines) == 13
    assert lines[1] == "  log2phy at layer 0, rank 0, expert 0 is 9; expected 0 by physical_to_logical"
    document["log2phy"] = [[[9] * 12] * 2]
    wide = Placement([list(range(12))], 2)
    path.write_text(json.dumps(golden.document_of(wide) | {"log2phy": document["log2phy"]}))
    lines = run("check", path).stderr.splitlines()
    assert lines[0].endswith(": 22 violations")
    assert lines[-1] == "  … and 2 more; --all lists them"


def test_what_is_expected_is_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    document = ascend()
    put("layer_list.0.device_list.1.device_expert", [1, 0])(document)
    path.write_text(json.dumps(document))
    good = tmp_path / "good.json"
    good.write_text(json.dumps(ascend()))
    told = json.loads(run("check", path, "--experts", 4, "--golden", good, "--json").stdout)
    assert told["kinds"] == {"missing": 1, "count": 1, "golden": 1}
    assert (told["counts"], told["digest"]) == (None, None)
    document = ascend() | {"moe_layer_count": 3}
    path.write_text(json.dumps(document))
    told = json.loads(run("check", path, "--json").stdout)
    assert told["digest"] == PLACEMENT.digest
    assert told["counts"] == {name: getattr(PLACEMENT, name) for name in COUNTS}


def test_layers_that_are_named_are_compared_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(own()))
    told = json.loads(run("check", path, "--json").stdout)
    assert told["layers"] == [1, 3]
    assert run("check", path, "--layers", "1,3").exit_code == 0
    result = run("check", path, "--layers", "3-4")
    assert (result.exit_code, result.stderr.splitlines()[1]) == (1, "  layers is 1,3; expected 3-4")
    assert "num_layers is 2; expected 3" in run("check", path, "--layers", "3-5").stderr
    # A bare map does not say them; then they are those that are expected.
    document = ascend()
    put("layer_list.1.device_list.0.device_expert", [0, 1])(document)
    path.write_text(json.dumps(document))
    assert "  layer 1: expert 2 is missing" in run("check", path).stderr
    assert "  row 1 (layer 4): expert 2 is missing" in run("check", path, "--layers", "3-4").stderr
    rows = {
        str(layer): row
        for layer, row in zip((3, 4, 9), [*PLACEMENT.physical_to_logical.tolist(), [0] * 4], strict=True)
    }
    path.write_text(json.dumps({"num_slots": 4, "initial_global_assignments": rows}))
    assert run("check", path, "--ep-size", 2, "--layers", "3-4").exit_code == 0
    assert "row 2 (layer 9): expert 1 is missing" in run("check", path, "--ep-size", 2).stderr
    other = run("check", path, "--ep-size", 2, "--layers", "3-5")
    assert other.exit_code == 1
    assert "layers is 3-4,9; expected 3-5" in other.stderr


def test_layered_maps_with_a_wrong_fact_are_listed(tmp_path: Path) -> None:
    layered = LayeredPlacement.from_rank_lists([[[0, 1], [2, 0]], [[0, 2, 1], [1]]], allow_uneven=True)
    document = json.loads(native.dumps(layered))
    path = tmp_path / "map.json"
    path.write_text(json.dumps(document))
    assert run("check", path, "--allow-uneven").exit_code == 0
    put("expert_maps.slots_per_rank.1.0", 4)(document)
    path.write_text(json.dumps(document))
    told = json.loads(run("check", path, "--allow-uneven", "--json").stdout)
    assert told["kinds"] == {"contradiction": 2}
    assert told["counts"]["num_physical_experts"] == [4, 4]
    told = json.loads(run("check", path, "--json").stdout)
    assert told["kinds"] == {"uneven": 1, "contradiction": 2}


def test_an_omni_pattern_with_an_empty_layer_names_the_experts(tmp_path: Path) -> None:
    table = np.zeros((2, 2, 2), dtype=np.int32)
    table[0, 0, 0] = table[1, 0, 1] = 1
    np.save(tmp_path / "map.npy", table)
    told = json.loads(run("check", tmp_path / "map.npy", "--json").stdout)
    assert told["kinds"] == {"missing": 2, "uneven": 2}
    np.save(tmp_path / "map.npy", np.zeros((2, 2, 2), dtype=np.int32))
    assert_one_line_error(run("check", tmp_path / "map.npy"), "layer 0 of the pattern has no experts")


ODD: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    7,
    2**31,
    2**63,
    1.5,
    "",
    "x",
    [],
    {},
    [0],
    [[0]],
    [[[0]]],
    {"a": 1},
)


def nodes(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    below = [place for key, value in entries for place in nodes(value, (*path, key))]
    return [path, *below] if path else below


@pytest.mark.parametrize(
    "make", [ascend, own, with_maps, arrays, load_balancer, lambda: with_maps() | ascend()]
)
def test_check_lists_something_exactly_where_readers_refuse(make: Callable[[], Document]) -> None:
    chance = random.Random(str(sorted(make())))  # noqa: S311 - no secret
    listed = 0
    for _ in range(150):
        document = make()
        for place in chance.choices(nodes(document), k=chance.choice((1, 1, 2))):
            node: Any = document
            try:
                for key in place[:-1]:
                    node = node[key]
                was = node[place[-1]]
            except (IndexError, KeyError, TypeError):
                continue  # gone with the first change
            if chance.random() < 0.2:
                del node[place[-1]]
            elif chance.random() < 0.4 and type(was) is int:
                node[place[-1]] = was + chance.choice((1, -1))
            else:
                node[place[-1]] = copy.deepcopy(chance.choice(ODD))
        source = Source("map.json", json.dumps(document).encode())
        try:
            inspect_map(source, ep_size=2)
            is_refused = False
        except ExpertMapsError:
            is_refused = True
        try:
            violations = examine_map(source, Asked(ep_size=2)).violations
        except ExpertMapsError:
            assert is_refused
            continue
        assert bool(violations) == is_refused, document
        assert sum(violations.count_kinds().values()) == len(list(violations))
        listed += bool(violations)
    assert listed > 20
