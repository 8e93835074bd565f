# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps diff`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_runs import assert_one_line_error, run, write_slots

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_diff_tells_what_moves(tmp_path: Path) -> None:
    old = write_slots(tmp_path / "old.json", [[0, 1], [2, 3]], [[0, 1], [2, 3]])
    new = write_slots(tmp_path / "new.json", [[1, 2], [0, 3]], [[0, 1], [2, 3]])
    result = run("diff", old, new, "--expert-bytes", 1000)
    assert result.exit_code == 0
    assert "3 of 8 slots change (37.5%); 2 are fetched from another rank, 2.0 kB" in result.stdout
    assert "1 of 2 layers change, most of all: 0 (3 slots)" in result.stdout
    assert "layers that change" in run("diff", old, new, "--table").stdout
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
    assert_one_line_error(run("diff", old, old, "--expert-bytes", -1), "--expert-bytes is -1")


def test_diff_schedules_the_way(tmp_path: Path) -> None:
    old = write_slots(tmp_path / "old.json", [[0, 1], [2, 3]], [[0, 1], [2, 3]])
    new = write_slots(tmp_path / "new.json", [[1, 2], [0, 3]], [[0, 1], [2, 3]])
    sized = ("--schedule", "--expert-bytes", 10**9, "--bandwidth", 2)
    told = run("diff", old, new, *sized, "--nodes", 2).stdout
    assert (
        "1 round (no schedule that sends as little between nodes has fewer than 1): 2 experts sent to another rank, 2 of them between nodes"
        in told
    )
    assert (
        "2.0 GB sent, 2.0 GB between nodes: 0.5 s at 2 GB/s a rank; room for one more expert on each rank"
        in told
    )
    assert (
        "│     0 │     0 │      2 │            1:0 │          0:0 │"
        in run("diff", old, new, *sized, "--table").stdout
    )
    found = json.loads(run("diff", old, new, *sized, "--json").stdout)["schedule"]
    assert (found["rounds"], found["lower_bound"], found["seconds"], found["bytes"]) == (1, 1, 0.5, 2 * 10**9)
    sent = [(one["source_rank"], one["target_rank"], one["expert"]) for one in found["transfers"]]
    assert sent == [(0, 1, 0), (1, 0, 2)]
    assert {"layer": 0, "ep_rank": 0, "source_slot": 1, "target_slot": 0} in found["copies"]
    other_layer = json.loads(run("diff", old, new, "--schedule", "--json", "--layer", 1).stdout)["schedule"]
    assert (other_layer["rounds"], other_layer["transfers"], other_layer["seconds"]) == (1, [], None)
    assert "told with --expert-bytes or --model" in run("diff", old, new, "--schedule").stdout
    assert "schedule" not in json.loads(run("diff", old, new, "--json").stdout)


def test_diff_refuses_what_no_schedule_has(tmp_path: Path) -> None:
    old = write_slots(tmp_path / "old.json", [[0, 1], [2, 3]])
    asked = ("diff", old, old, "--schedule", "--expert-bytes", 1)
    assert_one_line_error(run(*asked, "--nodes", 3), "--nodes is 3; expected a divisor of --ep-size 2")
    assert_one_line_error(
        run(*asked, "--bandwidth", 0), "--bandwidth is 0.0; expected a number of GB/s above 0"
    )
    assert_one_line_error(run("diff", old, old, "--nodes", 2), "--nodes is 2; expected it with --schedule")
    assert_one_line_error(run("diff", old, old, "--bandwidth", 2), "expected it with --schedule")
