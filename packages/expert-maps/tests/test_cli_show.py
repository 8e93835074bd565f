# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps show`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cli_runs import assert_one_line_error, generate, run

from expert_maps import generate_placement, read_placement, write_placement
from expert_maps.cli.show import ranges

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
