# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import Placement, read_placement, write_placement

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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


def test_plan_prints_before_and_after_for_each_layer_and_writes_the_map(tmp_path: Path) -> None:
    load = np.random.default_rng(0).lognormal(size=(5, 16))
    np.save(tmp_path / "load.npy", load)
    result = run("plan", "load.npy", "--physical", 20, "--ep-size", 4, "--output", "map.json", "--table")
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


def test_a_certificate_raises_the_bound_and_leaves_the_plan(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.random.default_rng(3).lognormal(sigma=0.85, size=(2, 128)))
    command = ("plan", "load.npy", "--physical", 144, "--ep-size", 72, "--json")
    plain, certified = (json.loads(run(*command, *more).stdout) for more in ((), ("--certify",)))
    assert plain["digest"] == certified["digest"]
    assert max(certified["gap"]) < min(plain["gap"])


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
        (np.ones((2, 8)), ("--physical", 8, "--ep-size", 4, "--groups", 3), "error: --groups is 3"),
        (np.ones((2, 8)), ("--physical", 8, "--ep-size", 4, "--nodes", 3), "error: --nodes is 3"),
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
    assert "in 1 of 1 layer, the first of them layer 0" in result.stderr
    assert "the hottest rank carries more than before in 1 of them" in result.stderr
    result = run("rescale", "now.json", "load.npy", *counts, "--ep-size", 2, "--max-moves", "any")
    assert "in 1 of 1 layer" in result.stderr
    flat = run("plan", "load.npy", "--physical", 4, "--ep-size", 2, "--current", "now.json", "--json")
    assert (json.loads(flat.stdout)["mended_layers"], flat.stderr) == (
        [],
        "load.npy: array, 1 layer, 4 experts\n",
    )


def test_plan_of_a_load_without_tokens_warns(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.zeros((1, 8)))
    result = run("plan", "load.npy", "--physical", 12, "--ep-size", 4, "--output", "map.json")
    assert result.exit_code == 0
    assert "every count is 0" in result.stderr
    assert read_placement("map.json").num_redundant_experts == 4


def test_absent_loads_are_one_line(tmp_path: Path) -> None:
    for name in ("no.npy", "no/such.npz", str(tmp_path)):
        assert_one_line_error(run("plan", name, "--physical", 8, "--ep-size", 4), name)


@pytest.fixture
def load(tmp_path: Path) -> Path:
    path = tmp_path / "load.npy"
    np.save(path, np.random.default_rng(0).lognormal(size=(5, 16)))
    return path


def test_a_plan_is_summed_up_and_its_table_asked_for(load: Path) -> None:
    counts = ("plan", load.name, "--redundant", 4, "--ep-size", 4)
    summary = run(*counts).stdout
    assert "│" not in summary
    for start in ("balanced: 16", "balancedness: ", "worst layers: ", "most copies: ", "gap to the proved"):
        assert any(line.startswith(start) for line in summary.splitlines()), start
    assert summary.endswith("nothing written: give --output FILE\n")
    assert "│ total │" in run(*counts, "--table").stdout


def test_without_redundancy_the_least_that_divides_is_proposed(load: Path) -> None:
    result = run("plan", load.name, "--ep-size", 5, "--output", "map.json")
    assert (
        "--redundant 4 taken, the least with which 16 experts and copies divide by 5 ranks" in result.stdout
    )
    assert read_placement("map.json").num_redundant_experts == 4
    told = json.loads(run("plan", load.name, "--ep-size", 5, "--json").stdout)
    assert (told["redundancy_proposed"], told["num_redundant_experts"]) == (True, 4)
    told = json.loads(run("plan", load.name, "--ep-size", 5, "--redundant", 9, "--json").stdout)
    assert (told["redundancy_proposed"], told["num_redundant_experts"]) == (False, 9)
    again = run("plan", load.name, "--ep-size", 5, "--current", "map.json")
    assert "--redundant 4 taken, as the map in use has" in again.stdout


def test_redundant_and_physical_say_the_same_or_are_refused(load: Path) -> None:
    counts = ("plan", load.name, "--ep-size", 4)
    by_redundant = run(*counts, "--redundant", 4, "--json").stdout
    assert by_redundant == run(*counts, "--physical", 20, "--json").stdout
    assert by_redundant == run(*counts, "--physical", 20, "--redundant", 4, "--json").stdout
    assert_one_line_error(run(*counts, "--physical", 24, "--redundant", 4), "expected --physical 20")
    assert_one_line_error(run(*counts, "--redundant", 5), "nearest that work: 4 and 8")
    assert_one_line_error(run(*counts, "--redundant", -1), "--redundant is -1")
    assert_one_line_error(run("plan", load.name, "--ep-size", 0), "error: --ep-size is 0")


def test_an_input_is_never_written_over_by_whatever_name(tmp_path: Path, load: Path) -> None:
    plan = ("plan", load.name, "--redundant", 4, "--ep-size", 4)
    assert run(*plan, "--output", "map.json").exit_code == 0
    before = (load.read_bytes(), (tmp_path / "map.json").read_bytes())
    (tmp_path / "link.json").symlink_to("map.json")
    (tmp_path / "hard.json").hardlink_to(load)
    for name, read in (
        ("load.npy", "LOAD"),
        (f"../{tmp_path.name}/load.npy", "LOAD"),
        ("hard.json", "LOAD"),
        ("map.json", "--current"),
        ("link.json", "--current"),
        (tmp_path / "map.json", "--current"),
    ):
        result = run(*plan, "--current", "map.json", "--output", name)
        assert_one_line_error(result, f"is the file that is read as {read}")
    for command in ("rescale", "weights"):
        assert_one_line_error(run(command, "map.json", load.name, "--output", "link.json"), "read as MAP")
        assert_one_line_error(run(command, "map.json", load.name, "--output", load.name), "read as LOAD")
    assert (load.read_bytes(), (tmp_path / "map.json").read_bytes()) == before
    assert run(*plan, "--output", "map.json").stdout.endswith("\nwritten: map.json (replaced)\n")


def test_a_map_on_standard_output_stands_alone(tmp_path: Path, load: Path) -> None:
    plan = ("plan", load.name, "--redundant", 4, "--ep-size", 4, "--output")
    file = run(*plan, "map.json")
    piped = run(*plan, "-")
    assert piped.stdout == (tmp_path / "map.json").read_text()
    assert piped.stderr == file.stderr + file.stdout.replace("written: map.json", "written: standard output")
    assert_one_line_error(run(*plan, "-", "--json"), "standard output too")


def test_groups_on_nodes_say_what_they_cost(load: Path) -> None:
    plan = ("plan", load.name, "--redundant", 4, "--ep-size", 4)
    grouped = run(*plan, "--groups", 4, "--nodes", 2)
    told = json.loads(run(*plan, "--groups", 4, "--nodes", 2, "--json").stdout)
    free = json.loads(run(*plan, "--json").stdout)
    assert told["overall_balancedness_without_groups"] == free["overall_balancedness"]
    assert told["overall_balancedness"] < free["overall_balancedness"]
    assert (
        f"groups on nodes: balancedness {told['overall_balancedness']:.4f}; "
        f"{free['overall_balancedness']:.4f} without --groups and --nodes"
    ) in grouped.stdout
    assert "without" not in run(*plan, "--groups", 4).stdout.replace("without redundant", "")
    assert "overall_balancedness_without_groups" not in free


def test_a_model_is_compared_with_the_load(tmp_path: Path, load: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 5, "num_experts": 16}')
    plan = ("plan", load.name, "--redundant", 4, "--ep-size", 4, "--model")
    assert run(*plan, "config.json").exit_code == 0
    assert_one_line_error(
        run(*plan, "deepseek-r1", "--output", "map.json"),
        "load has 5 layers; expected 58, as deepseek-r1 has",
    )
    assert not (tmp_path / "map.json").exists()


def test_moves_are_bounded_counted_and_weighed(tmp_path: Path, load: Path) -> None:
    plan = ("plan", load.name, "--redundant", 4, "--ep-size", 4)
    np.save(tmp_path / "later.npy", np.random.default_rng(1).lognormal(size=(5, 16)))
    assert run(*plan, "--output", "map.json").exit_code == 0
    later = ("plan", "later.npy", "--ep-size", 4, "--current", "map.json")
    told = json.loads(run(*later, "--max-moves", 2, "--expert-bytes", 44040192, "--json").stdout)
    assert max(told["changed_per_layer"]) <= 2
    fetched = sum(told["fetched_per_layer"])
    assert told["fetched_bytes"] == fetched * 44040192
    text = run(*later, "--max-moves", 2, "--expert-bytes", 44040192).stdout
    assert f"{fetched} are fetched from another rank, {fetched * 44.040192:.1f} MB" in text
    assert "before: the map in use" in text
    free = run(*later, "--json").stdout
    assert free == run(*later, "--max-moves", "any", "--json").stdout
    assert max(json.loads(free)["changed_per_layer"]) > 2
    assert_one_line_error(run(*plan, "--max-moves", 2), "expected it with --current")
    assert_one_line_error(run(*plan, "--expert-bytes", 2), "expected it with --current")
    assert_one_line_error(run(*later, "--expert-bytes", -2, "--output", "next.json"), "--expert-bytes is -2")
    assert not (tmp_path / "next.json").exists()


def test_the_bytes_that_move_are_the_models_where_nobody_says_them(tmp_path: Path, load: Path) -> None:
    config = {"num_hidden_layers": 5, "num_experts": 16, "hidden_size": 8, "moe_intermediate_size": 4}
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"model_type": "qwen3_moe", "torch_dtype": "bfloat16", "decoder_sparse_step": 1})
    )
    plan = ("plan", load.name, "--ep-size", 4)
    assert run(*plan, "--redundant", 4, "--output", "map.json").exit_code == 0
    np.save(tmp_path / "later.npy", np.random.default_rng(1).lognormal(size=(5, 16)))
    later = ("plan", "later.npy", "--ep-size", 4, "--current", "map.json", "--json", "--model", "config.json")
    told = json.loads(run(*later).stdout)
    assert told["fetched_bytes"] == sum(told["fetched_per_layer"]) * 3 * 8 * 4 * 2
    told = json.loads(run(*later, "--expert-bytes", 10).stdout)
    assert told["fetched_bytes"] == sum(told["fetched_per_layer"]) * 10
