# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps rescale` and `expert-maps weights`: by the rules and in the words of `plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import read_placement, rescale, split_replicas

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load(tmp_path: Path) -> NDArray[np.float64]:
    counts = np.random.default_rng(0).lognormal(size=(3, 16))
    np.save(tmp_path / "load.npy", counts)
    run("plan", "load.npy", "--redundant", 4, "--ep-size", 4, "--output", "map.json")
    return counts


def test_rescale_writes_what_the_library_plans_and_sums_it_up(load: NDArray[np.float64]) -> None:
    result = run(
        "rescale", "map.json", "load.npy", "--failed-ranks", "1", "--physical", 18, "--output", "less.json"
    )
    assert result.exit_code == 0, result.stderr
    expected = rescale(read_placement("map.json"), load, failed_ranks=[1], num_physical_experts=18)
    assert read_placement("less.json") == expected.placement
    assert result.stdout.startswith(
        "balanced: 16 experts + 2 redundant on 3 ranks of 6 slots, 3 layers, 1 step"
    )
    assert result.stdout.endswith("\nwritten: less.json\n")
    assert "│" not in result.stdout


def test_rescale_takes_redundant_and_moves_as_plan_does(load: NDArray[np.float64]) -> None:
    grow = ("rescale", "map.json", "load.npy", "--ep-size", 5)
    assert run(*grow, "--redundant", 9, "--json").stdout == run(*grow, "--physical", 25, "--json").stdout
    few = json.loads(run(*grow, "--json").stdout)
    assert few == json.loads(run(*grow, "--max-moves", 0, "--json").stdout)
    many = json.loads(run(*grow, "--max-moves", "any", "--json").stdout)
    assert sum(few["changed_per_layer"]) == 15  # the slots of the new rank
    assert sum(many["changed_per_layer"]) > 15
    assert_one_line_error(run(*grow, "--redundant", 8), "nearest that work: 4 and 9")
    assert_one_line_error(run(*grow, "--model", "deepseek-r1"), "expected 58, as deepseek-r1 has")
    assert "│ total │" in run(*grow, "--table").stdout
    assert len(load) == 3


def test_rescale_shows_how_far_it_is(load: NDArray[np.float64]) -> None:
    run("plan", "load.npy", "--redundant", 4, "--ep-size", 4, "--output", "map.json")
    seen: list[tuple[int, int]] = []
    rescale(
        read_placement("map.json"), load, ep_size=5, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(3, 3)]


def test_weights_are_written_and_summed_up(load: NDArray[np.float64]) -> None:
    result = run("weights", "map.json", "load.npy", "--output", "weights.npz")
    assert result.exit_code == 0
    found = split_replicas(read_placement("map.json"), load)
    np.testing.assert_array_equal(np.load("weights.npz")["weights"], found.weights)
    assert result.stdout.endswith("\nwritten: weights.npz\n")
    assert run("weights", "map.json", "load.npy").stdout.endswith("nothing written: give --output FILE\n")
    again = run("weights", "map.json", "load.npy", "--output", "weights.npz", "--table")
    assert again.stdout.endswith("\nwritten: weights.npz (replaced)\n")
    told = json.loads(run("weights", "map.json", "load.npy", "--json").stdout)
    assert told["balancedness"] == found.balancedness.tolist()
    for value in (*told["balancedness"], *told["balancedness_even"], told["overall_balancedness"]):
        assert f"{value:.4f}" in again.stdout
    assert_one_line_error(
        run("weights", "map.json", "load.npy", "--output", "weights.txt"), "ends in .npz or .json"
    )
