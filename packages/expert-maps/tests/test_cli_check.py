# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps check`, and what every command that reads a map refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_runs import assert_one_line_error, generate, run, write_slots

from expert_maps import read_placement
from expert_maps.cli import check

JSON_KEYS = {"version", "file", "ok", "num_violations", "violations", "kinds", "counts", "layers", "digest"}

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_check_passes_good_maps(tmp_path: Path) -> None:
    path = generate(tmp_path)
    result = run("check", path, "--experts", 8, "--layers", 1, "--ep-size", 4, "--redundant", 4)
    assert result.exit_code == 0
    assert ": ok, 1 layer, 8 experts, 4 redundant, 4 ranks" in result.stdout
    assert run("check", path, "--golden", path).exit_code == 0
    told = json.loads(run("check", path, "--json").stdout)
    assert told["ok"] is True
    assert set(told) == JSON_KEYS
    assert told["digest"] == read_placement(path).digest
    assert told["counts"]["num_physical_experts"] == 12


@pytest.mark.parametrize(
    ("expectation", "fragment"),
    [
        (("--experts", 9), "num_logical_experts is 8; expected 9"),
        (("--experts", 7), "num_logical_experts is 8; expected 7"),
        (("--layers", 2), "num_layers is 1; expected 2"),
        (("--ep-size", 2), "ep_size is 4; expected 2"),
        (("--redundant", 0), "num_redundant_experts is 4; expected 0"),
        (("--physical", 8), "num_physical_experts is 12; expected 8"),
        (("--model", "deepseek-r1"), "num_logical_experts is 8; expected 256"),
    ],
)
def test_check_fails_on_other_counts(tmp_path: Path, expectation: tuple[object, ...], fragment: str) -> None:
    path = generate(tmp_path)
    result = run("check", path, *expectation)
    assert result.exit_code == 1
    assert fragment in result.stderr
    told = json.loads(run("check", path, *expectation, "--json").stdout)
    assert told["ok"] is False
    assert [violation["kind"] for violation in told["violations"]] == ["count"] * told["num_violations"]
    assert fragment in [violation["message"] for violation in told["violations"]]


def test_layers_and_a_model_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = generate(tmp_path)
    told = run("check", path, "--model", "deepseek-r1", "--layers", "3-60")
    assert told.exit_code == 1
    assert "num_layers is 1; expected 58" in told.stderr
    other = run("check", path, "--model", "deepseek-r1", "--layers", "4-61")
    assert_one_line_error(other, "--layers is 4-61; --model deepseek-r1 has other MoE layers")


def test_check_lists_every_violation_and_exits_1(tmp_path: Path) -> None:
    path = write_slots(tmp_path / "map.json", [[0, 0], [2, 3]], [[0, 1], [2, 2]])
    result = run("check", path)
    assert result.exit_code == 1
    for line in (
        "4 violations",
        "layer 0: expert 1 is missing",
        "layer 1: expert 3 is missing",
        "layer 0, rank 0, slot 1: expert 0 stands twice on this rank (also in slot 0)",
        "layer 1, rank 1, slot 1: expert 2 stands twice on this rank (also in slot 0)",
    ):
        assert line in result.stderr
    told = json.loads(run("check", path, "--json").stdout)
    assert set(told) == JSON_KEYS
    assert (told["version"], told["ok"], told["num_violations"]) == (1, False, 4)
    assert told["kinds"] == {"missing": 2, "duplicate": 2}
    assert told["violations"][2] == {
        "kind": "duplicate",
        "message": "layer 0, rank 0, slot 1: expert 0 stands twice on this rank (also in slot 0)",
        "layer": 0,
        "rank": 0,
        "slot": 1,
        "expert": 0,
        "found": None,
        "expected": None,
    }


@pytest.mark.parametrize(
    ("layers", "kinds"),
    [
        ([[[0, 1], [2, 77]]], {"out_of_range": 1}),
        ([[[0, 1], [2, -1]]], {"out_of_range": 1}),
        ([[[0, 1], [2, 0], [1]]], {"uneven": 1}),
        ([[[0, 1], [2]], [[0], [1]]], {"uneven": 1, "missing": 1}),
    ],
)
def test_check_says_in_one_shape_what_is_uneven_or_out_of_range(
    tmp_path: Path, layers: list[list[list[int]]], kinds: dict[str, int]
) -> None:
    path = write_slots(tmp_path / "map.json", *layers)
    result = run("check", path, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert set(told) == JSON_KEYS
    assert told["kinds"] == kinds
    assert told["num_violations"] == len(told["violations"]) == sum(kinds.values())
    text = run("check", path)
    assert text.exit_code == 1
    assert all(violation["message"] in text.stderr for violation in told["violations"])


def test_check_lists_so_many_and_counts_the_rest(tmp_path: Path) -> None:
    path = write_slots(tmp_path / "map.json", [[29] * 15, [29] * 15])
    result = run("check", path)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].endswith(": 57 violations")
    assert lines[-1] == "  … and 37 more; --all lists them"
    assert len(lines) == 22
    assert len(run("check", path, "--all").stderr.splitlines()) == 58
    assert len(json.loads(run("check", path, "--json").stdout)["violations"]) == 57


def test_a_format_that_is_not_there_or_unknown_is_one_line(tmp_path: Path) -> None:
    path = generate(tmp_path)
    assert run("check", path, "--from", "expert-maps").exit_code == 0
    assert_one_line_error(
        run("check", path, "--from", "sglamg"), "--from is 'sglamg'", "did you mean sglang?"
    )
    assert_one_line_error(run("check", path, "--from", "sglang"), "there is no physical_to_logical_map")


def test_check_reads_standard_input(tmp_path: Path) -> None:
    content = generate(tmp_path).read_bytes()
    assert run("check", "-", given=content).stdout.startswith("-: ok, 1 layer, 8 experts")
    assert_one_line_error(run("check", "-", given=b"{"), "standard input: not valid JSON")
    assert_one_line_error(run("check", "-", "--golden", "-", given=content), "both '-'")


def test_check_names_each_slot_that_differs_from_a_golden(tmp_path: Path) -> None:
    path = write_slots(tmp_path / "map.json", [[0, 1], [2, 0]])
    golden = write_slots(tmp_path / "golden.json", [[0, 1], [0, 2]])
    result = run("check", path, "--golden", golden)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        "  layer 0, rank 1, slot 0: expert 2; expected 0 (golden)",
        "  layer 0, rank 1, slot 1: expert 0; expected 2 (golden)",
    ]
    told = json.loads(run("check", path, "--golden", golden, "--json").stdout)["violations"][1]
    assert (told["rank"], told["slot"], told["found"], told["expected"]) == (1, 1, 0, 2)
    other = write_slots(tmp_path / "other.json", [[0], [1]])
    assert "num_logical_experts is 3; expected 2 (golden)" in run("check", path, "--golden", other).stderr
    assert_one_line_error(run("check", path, "--golden", "absent.json"), "absent.json")


def test_flags_accept_uneven_ranks_and_duplicates(tmp_path: Path) -> None:
    uneven = write_slots(tmp_path / "uneven.json", [[0, 1, 2], [0]])
    twice = write_slots(tmp_path / "twice.json", [[0, 1], [0, 0]])
    assert run("check", uneven, "--allow-uneven").exit_code == 0
    assert run("check", twice).exit_code == 1
    assert run("check", twice, "--allow-duplicates").exit_code == 0
    assert run("show", uneven, "--allow-uneven").exit_code == 0
    assert run("diff", twice, twice, "--allow-duplicates").exit_code == 0


# what every command that reads a map refuses

BAD_FILES: dict[str, tuple[object, str]] = {
    "broken.json": ("{", "not valid JSON"),
    "empty.json": ("", "the file is empty"),
    "keys.json": ({"layer_list": []}, "has no key 'moe_layer_count'"),
    "list.json": ([1], "expected an object"),
    "ragged.json": ([[[0, 1], [2]], [[0], [1]]], "slots"),
    "ragged_rank.json": ([[[0, 1], [2, 0], [1]]], "layer 0, rank 2: 1 slots; expected 2"),
    "unknown.json": ([[[0, 1], [2, 77]]], "layer 0, rank 1, slot 1: expert 77 is out of range"),
    "negative.json": ([[[0, 1], [2, -1]]], "layer 0, rank 1, slot 1: expert -1 is out of range"),
    "text_id.json": ([[[0, 1], [2, "3"]]], 'device_expert[1] is "3"'),
}


# Those that are no maps at all; the others are maps, with violations, which `check` lists.
UNREADABLE = ("list.json", "text_id.json")


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", [("check",), ("show",), ("diff", "good.json")])
def test_files_that_are_no_placement_are_one_line(
    tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    write_slots(tmp_path / "good.json", [[0, 1], [2, 0]])
    content, fragment = BAD_FILES[name]
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict) or name == "list.json":
        path.write_text(json.dumps(content))
    else:
        write_slots(path, *content)  # type: ignore[misc]
    result = run(*command, path)
    if command == ("check",) and not isinstance(content, str | dict) and name not in UNREADABLE:
        assert result.exit_code == 1
        assert fragment in result.stderr
    else:
        assert_one_line_error(result, name, fragment)


@pytest.mark.parametrize("command", [("check",), ("show",), ("diff", "good.json")])
def test_absent_files_and_folders_are_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    write_slots(tmp_path / "good.json", [[0, 1], [2, 0]])
    assert_one_line_error(run(*command, "absent.json"), f"absent.json (in {tmp_path}): no such file")
    assert_one_line_error(run(*command, "no/such.json"), "no/such.json: no such file")
    assert_one_line_error(run(*command, tmp_path), "is a folder")


def test_ranks_and_layers_are_told_where_a_format_does_not_say_them(tmp_path: Path) -> None:
    # SGLang's rows are all layers of the model, and it does not say how many ranks share them.
    rows = [[0, 0, 0, 0], [0, 1, 2, 3], [3, 2, 1, 0]]
    (tmp_path / "sglang.json").write_text(json.dumps({"physical_to_logical_map": rows}))
    assert_one_line_error(run("check", "sglang.json"), "how many ranks", "--ep-size")
    result = run("check", "sglang.json", "--ep-size", 2, "--layers", "1-2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert ": ok, 2 layers, 4 experts, 0 redundant, 2 ranks" in result.stdout
    assert (
        run("check", "sglang.json", "--ep-size", 2, "--layers", 3).exit_code == 1
    )  # its first row is no MoE layer


def test_ranks_of_a_map_that_does_not_say_them_are_told(tmp_path: Path) -> None:
    path = generate(tmp_path)
    other = tmp_path / "map.npz"
    assert run("convert", path, other, "--to", "vllm").exit_code == 0
    assert_one_line_error(run("check", other), "how many ranks")
    result = run("check", other, "--ep-size", 4, "--golden", path)
    assert result.exit_code == 0, result.output
    assert "4 ranks" in result.stdout
    assert_one_line_error(run("check", path, "--golden", other), "how many ranks")
    assert run("check", path, "--golden", other, "--ep-size", 4).exit_code == 0


def test_json_lists_the_first_violations_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_MOST_IN_JSON", 2)
    path = write_slots(tmp_path / "map.json", [[0, 0, 0], [3, 3, 3]])
    for option, listed in (((), 2), (("--all",), 6)):
        document = json.loads(run("check", path, "--json", *option).stdout)
        assert len(document["violations"]) == listed
        assert document["num_violations"] == 6
        assert document["kinds"] == {"missing": 2, "duplicate": 4}
