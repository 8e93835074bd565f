# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: exit codes, output, one line for each error, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from expert_maps import Placement, generate_placement, read_placement, write_placement
from expert_maps.cli import app, common
from expert_maps.cli.show import ranges

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_one_line_error(result: Result, *fragments: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in result.stderr


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def generate(tmp_path: Path, name: str = "map.json", *extra: object) -> Path:
    path = tmp_path / name
    result = run("generate", "--experts", 8, "--ep-size", 4, "--redundant", 4, "--output", path, *extra)
    assert result.exit_code == 0, result.output
    return path


# generate


def test_generate_writes_what_the_library_makes(tmp_path: Path) -> None:
    for layout, redundant in (("ring", 16), ("append", 16), ("linear", 0), ("round_robin", 0)):
        path = tmp_path / f"{layout}.json"
        counts = ("--experts", 256, "--ep-size", 16, "--redundant", redundant, "--layers", 3)
        result = run("generate", *counts, "--layout", layout, "--output", path)
        assert result.exit_code == 0
        assert read_placement(path) == generate_placement(
            layout, num_experts=256, ep_size=16, num_redundant_experts=redundant, num_layers=3
        )


def test_generate_takes_ring_and_a_bare_name_and_a_model(tmp_path: Path) -> None:
    result = run(
        "generate", "--model", "deepseek-r1", "--ep-size", 16, "--redundant", 16, "--output", "map.json"
    )
    assert result.stdout == "map.json: ring, 58 layers, 256 experts, 16 redundant, 16 ranks of 17 slots\n"
    assert read_placement(tmp_path / "map.json") == generate_placement(
        "ring", num_experts=256, ep_size=16, num_redundant_experts=16, num_layers=58
    )


def test_generate_without_output_prints_the_map() -> None:
    result = run("generate", "--experts", 4, "--ep-size", 2)
    assert json.loads(result.stdout)["layer_list"][0]["device_list"][1]["device_expert"] == [2, 3]


def test_generate_json_tells_the_counts(tmp_path: Path) -> None:
    result = run("generate", "--experts", 10, "--ep-size", 4, "--json", "--output", tmp_path / "map.json")
    told = json.loads(result.stdout)
    assert told["slots_per_rank"] == [3, 3, 2, 2]
    assert told["digest"] == read_placement(tmp_path / "map.json").digest


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--experts", 256, "--ep-size", 16, "--redundant", 5), "nearest that work: 0 and 16"),
        (("--experts", 0, "--ep-size", 16), "num_experts is 0"),
        (("--experts", -4, "--ep-size", 16), "num_experts is -4"),
        (("--experts", 8, "--ep-size", 0), "ep_size is 0"),
        (("--experts", 8, "--ep-size", 4, "--redundant", -4), "num_redundant_experts is -4"),
        (("--experts", 8, "--ep-size", 4, "--layers", 0), "num_layers is 0"),
        (("--experts", 8, "--ep-size", 4, "--layout", "spiral"), "layout is 'spiral'"),
        (("--experts", 8, "--ep-size", 4, "--layout", "linear", "--redundant", 4), "use 'ring'"),
        (("--experts", 4, "--ep-size", 2, "--redundant", 6), "stands twice"),
        (("--ep-size", 4), "--experts or --model"),
        (("--ep-size", 4, "--model", "gpt-9"), "gpt-9"),
        (("--experts", 10**12, "--ep-size", 4), "num_experts is 1000000000000; expected at most"),
    ],
)
def test_generate_refuses_bad_counts_and_writes_nothing(
    tmp_path: Path, arguments: tuple[object, ...], fragment: str
) -> None:
    assert_one_line_error(run("generate", *arguments, "--output", "map.json"), fragment)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("output", "fragment"),
    [
        ("no/such/map.json", "there is no folder"),
        ("map", "expected a name that ends in .json"),
        ("folder.json", "is a folder"),
        ("/proc/self/map.json", "cannot be written"),
    ],
)
def test_outputs_that_cannot_be_written_are_one_line(tmp_path: Path, output: str, fragment: str) -> None:
    (tmp_path / "folder.json").mkdir()
    np.save(tmp_path / "load.npy", np.ones((1, 8)))
    for command in (("generate", "--experts", 8), ("plan", "load.npy", "--physical", 8)):
        assert_one_line_error(run(*command, "--ep-size", 4, "--output", output), fragment)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.json", "load.npy"]


# plan


def test_plan_prints_before_and_after_for_each_layer_and_writes_the_map(tmp_path: Path) -> None:
    load = np.random.default_rng(0).lognormal(size=(5, 16))
    np.save(tmp_path / "load.npy", load)
    result = run("plan", "load.npy", "--physical", 20, "--ep-size", 4, "--output", "map.json")
    assert result.exit_code == 0
    for word in ("before", "after", "total", "written: map.json", "16 experts + 4 redundant on 4 ranks"):
        assert word in result.stdout
    told = json.loads(run("plan", "load.npy", "--physical", 20, "--ep-size", 4, "--json").stdout)
    assert told["digest"] == read_placement("map.json").digest
    assert len(told["balancedness"]) == len(told["balancedness_before"]) == 5
    assert told["overall_balancedness"] > told["overall_balancedness_before"]
    for before, after in zip(told["balancedness_before"], told["balancedness"], strict=True):
        assert f"{before:.4f}" in result.stdout
        assert f"{after:.4f}" in result.stdout


def test_plan_takes_groups_nodes_policy_and_key(tmp_path: Path) -> None:
    load = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    np.savez(tmp_path / "load.npz", wanted=np.array(load), other=np.ones((1, 3)))
    counts = (
        "--physical",
        16,
        "--ep-size",
        8,
        "--groups",
        4,
        "--nodes",
        2,
        "--policy",
        "deepseek_hierarchical",
    )
    assert run("plan", "load.npz", "--key", "wanted", *counts, "--output", "map.json").exit_code == 0
    assert read_placement("map.json").physical_to_logical.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert_one_line_error(run("plan", "load.npz", *counts), "choose one by its key")


@pytest.mark.parametrize(
    ("array", "arguments", "fragment"),
    [
        (np.ones((2, 8)), ("--physical", 9, "--ep-size", 4), "the nearest: 8 and 12"),
        (np.ones((2, 8)), ("--physical", 4, "--ep-size", 4), "expected 8 … 32"),
        (np.ones((2, 8)), ("--physical", 8, "--ep-size", 4, "--policy", "best"), "policy is 'best'"),
        (np.ones((2, 8)), ("--physical", 8, "--ep-size", 4, "--groups", 3), "num_groups is 3"),
        (np.ones((2, 8)), ("--physical", 8, "--ep-size", 4, "--nodes", 3), "num_nodes is 3"),
        (np.array([[1, np.nan]]), ("--physical", 2, "--ep-size", 2), "layer 0, expert 1 is nan"),
        (np.array([[1, -1]]), ("--physical", 2, "--ep-size", 2), "layer 0, expert 1 is -1"),
        (np.ones(8), ("--physical", 8, "--ep-size", 4), "shape [8]"),
    ],
)
def test_plan_refuses_bad_input_and_writes_nothing(
    tmp_path: Path, array: np.ndarray, arguments: tuple[object, ...], fragment: str
) -> None:
    np.save(tmp_path / "load.npy", array)
    assert_one_line_error(run("plan", "load.npy", *arguments, "--output", "map.json"), fragment)
    assert not (tmp_path / "map.json").exists()


def test_a_map_in_use_that_breaks_a_rule_is_named_with_what_it_costs(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.array([[5, 7, 0, 3]]))
    write_placement(Placement([[1, 2, 0, 3]], 2), tmp_path / "now.json")
    counts = ("--physical", 4, "--groups", 2, "--nodes", 2)
    result = run("plan", "load.npy", *counts, "--ep-size", 2, "--current", "now.json", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["mended_layers"] == [0]
    assert "breaks a rule that the plan keeps" in result.stderr
    assert "in 1 of 1 layers, the first of them 0" in result.stderr
    assert "the hottest rank carries more than before in 1 of them" in result.stderr
    result = run("rescale", "now.json", "load.npy", *counts, "--ep-size", 2, "--max-moves", -1)
    assert "in 1 of 1 layers" in result.stderr
    flat = run("plan", "load.npy", "--physical", 4, "--ep-size", 2, "--current", "now.json", "--json")
    assert json.loads(flat.stdout)["mended_layers"] == []
    assert flat.stderr == "load.npy: array, 1 layer, 4 experts\n"


def test_plan_of_a_load_without_tokens_warns(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.zeros((1, 8)))
    result = run("plan", "load.npy", "--physical", 12, "--ep-size", 4, "--output", "map.json")
    assert result.exit_code == 0
    assert "every count is 0" in result.stderr
    assert read_placement("map.json").num_redundant_experts == 4


def test_absent_loads_are_one_line(tmp_path: Path) -> None:
    for name in ("no.npy", "no/such.npz", str(tmp_path)):
        assert_one_line_error(run("plan", name, "--physical", 8, "--ep-size", 4), name)


def draw_bar(*, terminal: bool) -> str:
    screen = io.StringIO()
    with common.progress_bar("planning", Console(file=screen, force_terminal=terminal)) as advance:
        advance(1, 2)
        advance(2, 2)
    return screen.getvalue()


def test_a_bar_is_drawn_only_on_a_terminal_when_work_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not draw_bar(terminal=True)
    monkeypatch.setattr(common, "_QUIET_SECONDS", -1)
    assert "planning" in draw_bar(terminal=True)
    assert not draw_bar(terminal=False)


# check


def test_check_passes_good_maps(tmp_path: Path) -> None:
    path = generate(tmp_path)
    result = run("check", path, "--experts", 8, "--layers", 1, "--ep-size", 4, "--redundant", 4)
    assert result.exit_code == 0
    assert ": ok, 1 layers, 8 experts, 4 redundant, 4 ranks" in result.stdout
    assert run("check", path, "--golden", path).exit_code == 0
    told = json.loads(run("check", path, "--json").stdout)
    assert told["ok"] is True
    assert told["digest"] == read_placement(path).digest


@pytest.mark.parametrize(
    ("expectation", "fragment"),
    [
        (("--experts", 9), "num_logical_experts is 8; expected 9"),
        (("--experts", 7), "num_logical_experts is 8; expected 7"),
        (("--layers", 2), "num_layers is 1; expected 2"),
        (("--ep-size", 2), "ep_size is 4; expected 2"),
        (("--redundant", 0), "num_redundant_experts is 4; expected 0"),
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
    assert fragment in told["failures"]


def write_slots(path: Path, *layers: list[list[int]]) -> Path:
    """Write a map file with any slots at all."""
    document = {
        "moe_layer_count": len(layers),
        "layer_list": [
            {
                "layer_id": index,
                "device_count": len(ranks),
                "device_list": [{"device_id": r, "device_expert": slots} for r, slots in enumerate(ranks)],
            }
            for index, ranks in enumerate(layers)
        ],
    }
    path.write_text(json.dumps(document))
    return path


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
    assert len(json.loads(run("check", path, "--json").stdout)["failures"]) == 4


def test_check_names_the_first_slot_that_differs_from_a_golden(tmp_path: Path) -> None:
    path = write_slots(tmp_path / "map.json", [[0, 1], [2, 0]])
    golden = write_slots(tmp_path / "golden.json", [[0, 1], [0, 2]])
    result = run("check", path, "--golden", golden)
    assert result.exit_code == 1
    assert "layer 0, rank 1, slot 0: expert 2; expected 0 (golden; 2 slots differ)" in result.stderr
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
    assert_one_line_error(run(*command, path), name, fragment)


@pytest.mark.parametrize("command", [("check",), ("show",), ("diff", "good.json")])
def test_absent_files_and_folders_are_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    write_slots(tmp_path / "good.json", [[0, 1], [2, 0]])
    assert_one_line_error(run(*command, "absent.json"), f"absent.json (in {tmp_path}): no such file")
    assert_one_line_error(run(*command, "no/such.json"), "no/such.json: no such file")
    assert_one_line_error(run(*command, tmp_path), "is a folder")


# show


def test_show_prints_the_rank_that_bug_reports_are_about() -> None:
    run(
        "generate",
        "--experts",
        256,
        "--ep-size",
        16,
        "--redundant",
        16,
        "--layers",
        2,
        "--output",
        "map.json",
    )
    shown = run("show", "map.json", "--layer", 1, "--rank", 15).stdout
    assert "ep size: 16, num of experts: 256, num of redundant experts: 16" in shown
    assert "expert_map (logical → local slot): 0 → 16, 1…239 → -1, 240…255 → 0…15" in shown
    pasted = shown.split("for rank 15:\n")[1].split("]")[0].strip("[")
    assert [int(number) for number in pasted.split()] == [16] + [-1] * 239 + list(range(16))
    log2phy = shown.split("log2phy for rank 15:\n")[1].strip().strip("[]")
    assert [int(n) for n in log2phy.split()] == read_placement("map.json").log2phy(1, 15).tolist()
    compact = run("show", "map.json", "--rank", 15, "--compact").stdout
    assert "240…255 → 0…15" in compact
    assert "-1 -1" not in compact


def test_show_json_and_tensor_parallel(tmp_path: Path) -> None:
    path = generate(tmp_path)
    placement = read_placement(path)
    told = json.loads(run("show", path, "--rank", 3, "--tp-size", 2, "--json").stdout)
    assert told["expert_map"] == placement.expert_map(0, 3).tolist()
    assert told["log2phy"] == placement.log2phy(0, 3, tp_size=2).tolist()
    assert told["local_experts"] == [6, 7, 0]


def test_show_refuses_layers_and_ranks_that_do_not_exist(tmp_path: Path) -> None:
    path = generate(tmp_path)
    assert_one_line_error(run("show", path, "--rank", 4), "ep_rank is 4; expected one of 0 … 3")
    assert_one_line_error(run("show", path, "--layer", 1), "layer is 1; expected one of 0 … 0")
    assert_one_line_error(run("show", path, "--layer", -1), "layer is -1")


def test_show_of_an_empty_rank(tmp_path: Path) -> None:
    write_placement(generate_placement("linear", num_experts=2, ep_size=3), tmp_path / "map.json")
    shown = run("show", "map.json", "--rank", 2).stdout
    assert "0 slots, physical experts none" in shown


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([5], "0→5"),
        ([0, 1, 2], "0…2→0…2"),
        ([-1, -1, -1, 4], "0…2→-1, 3→4"),
        ([3, 1, 2, 9], "0→3, 1→1, 2→2, 3→9"),
        ([], "none"),
        ([7, 7, 8, 9, 10], "0→7, 1…4→7…10"),
    ],
)
def test_ranges(values: list[int], text: str) -> None:
    assert ranges(np.arange(len(values)), np.array(values, dtype=np.int32), "→") == text


# diff


def test_diff_tells_what_moves(tmp_path: Path) -> None:
    old = write_slots(tmp_path / "old.json", [[0, 1], [2, 3]], [[0, 1], [2, 3]])
    new = write_slots(tmp_path / "new.json", [[1, 2], [0, 3]], [[0, 1], [2, 3]])
    result = run("diff", old, new, "--expert-bytes", 1000)
    assert result.exit_code == 0
    assert "3 of 8 slots change (37.5%); 2 are fetched from another rank, 2,000 bytes" in result.stdout
    listed = run("diff", old, new, "--layer", 0).stdout
    assert "slots of layer 0 that change" in listed
    told = json.loads(run("diff", old, new, "--json").stdout)
    assert (told["changed"], told["fetched"], told["changed_per_layer"]) == (3, 2, [3, 0])
    assert told["moves"][0] == {
        "layer": 0,
        "ep_rank": 0,
        "slot": 0,
        "before": 0,
        "after": 1,
        "fetched": False,
    }
    assert run("diff", old, old).stdout.startswith("0 of 8 slots change")


def test_diff_refuses_other_counts_and_layers(tmp_path: Path) -> None:
    old = write_slots(tmp_path / "old.json", [[0, 1], [2, 3]])
    other = write_slots(tmp_path / "other.json", [[0, 1], [2, 0]])
    assert_one_line_error(run("diff", old, other), "num_logical_experts differs: 4 before, 3 after")
    assert_one_line_error(run("diff", old, old, "--layer", 1), "layer is 1")
    assert_one_line_error(run("diff", old, old, "--expert-bytes", -1), "expert_bytes is -1")


# the whole


@pytest.mark.parametrize("command", ["generate", "plan", "check", "show", "diff"])
def test_every_option_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_usage_errors_exit_2() -> None:
    for arguments in (
        ("generate",),
        ("plan",),
        ("nonsense",),
        ("generate", "--experts", "many", "--ep-size", 2),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_the_installed_command_works_without_a_terminal(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in {"TERM", "LANG", "LC_ALL"}}
    for arguments in (
        ["--version"],
        ["generate", "--experts", "8", "--ep-size", "4", "--output", "map.json"],
        ["show", "map.json"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "expert_maps", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert isinstance(read_placement(tmp_path / "map.json"), Placement)
