# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps generate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import generate_placement, read_placement

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
        (("--experts", 0, "--ep-size", 16), "--experts is 0"),
        (("--experts", -4, "--ep-size", 16), "--experts is -4"),
        (("--experts", 8, "--ep-size", 0), "error: --ep-size is 0; expected at least 1"),
        (("--experts", 8, "--ep-size", 4, "--redundant", -4), "error: --redundant is -4"),
        (("--experts", 8, "--ep-size", 4, "--layers", 0), "error: --layers is 0"),
        (("--experts", 8, "--ep-size", 4, "--layout", "spiral"), "layout is 'spiral'"),
        (("--experts", 8, "--ep-size", 4, "--layout", "linear", "--redundant", 4), "use 'ring'"),
        (("--experts", 4, "--ep-size", 2, "--redundant", 6), "stands twice"),
        (("--ep-size", 4), "--experts or --model"),
        (("--ep-size", 4, "--model", "gpt-9"), "gpt-9"),
        (("--experts", 10**12, "--ep-size", 4), "--experts is 1000000000000; expected at most"),
    ],
)
def test_generate_refuses_bad_counts_and_writes_nothing(
    tmp_path: Path, arguments: tuple[object, ...], fragment: str
) -> None:
    assert_one_line_error(run("generate", *arguments, "--output", "map.json"), fragment)
    assert not list(tmp_path.iterdir())


def test_generate_takes_physical_and_says_what_it_replaced(tmp_path: Path) -> None:
    counts = ("--experts", 8, "--ep-size", 4, "--output", "map.json")
    assert "written" not in run("generate", *counts, "--physical", 12).stdout
    assert read_placement("map.json").num_redundant_experts == 4
    again = run("generate", *counts, "--physical", 12, "--redundant", 4)
    assert again.stdout.endswith("\nwritten: map.json (replaced)\n")
    assert_one_line_error(run("generate", *counts, "--physical", 12, "--redundant", 3), "--physical 11")
    assert_one_line_error(run("generate", *counts, "--physical", 7), "--physical is 7")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "num_experts": 8}')
    same = ("--model", "config.json", "--ep-size", 4, "--output", "../" + tmp_path.name + "/config.json")
    assert_one_line_error(run("generate", *same), "read as --model")


def test_generate_to_standard_output_prints_the_map_alone() -> None:
    result = run("generate", "--experts", 4, "--ep-size", 2, "--output", "-")
    assert result.stdout == run("generate", "--experts", 4, "--ep-size", 2).stdout
    assert result.stderr == "standard output: ring, 1 layer, 4 experts, 0 redundant, 2 ranks of 2 slots\n"
