# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps evaluate` and `expert-maps compare`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run, write_slots

from expert_maps import metrics, plan, read_placement

if TYPE_CHECKING:
    from pathlib import Path

# Ranks [0, 1, 2] and [2, 3, 0]: expert 0 and 2 have two copies.
LOAD = [[[10, 4, 6, 0], [0, 2, 2, 16]], [[10, 0, 2, 0], [0, 0, 0, 0]]]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "load.npy", np.array(LOAD))
    write_slots(tmp_path / "map.json", *[[[0, 1, 2], [2, 3, 0]]] * 2)


def test_evaluate_prints_what_can_be_added_up_by_hand() -> None:
    told = json.loads(run("evaluate", "map.json", "load.npy", "--json").stdout)
    # Layer 0: rank 0 has 10 + 4 + 4, rank 1 has 10 + 4. Layer 1: 2 + 1 and 1 + 16.
    assert told["rank_load"] == [[18, 14], [3, 17]]
    assert told["balancedness"] == [16 / 18, 10 / 17]
    assert told["overall_balancedness"] == 26 / 35
    # Steps: 12 + 6 in layer 0, 17 + 0 in layer 1.
    assert told["balancedness_over_steps"] == pytest.approx(26 / (12 + 6 + 17))
    assert told["hottest_rank"] == [0, 1]
    assert told["hottest_expert"] == [0, 3]
    text = run("evaluate", "map.json", "load.npy").stdout
    assert "map.json: 4 experts + 2 redundant on 2 ranks of 3 slots, 2 layers, 2 steps of load" in text
    assert f"balancedness: {26 / 35:.4f}" in text
    assert "worst layers: 1 (0.5882), 0 (0.8889)" in text
    assert "hottest ranks: 1 in layer 1 (1.700 × mean, 17 tokens), " in text
    assert (
        "hottest experts: 3 in layer 1 (3.200 × mean, 16 tokens), 0 in layer 0 (2.500 × mean, 20 tokens, 2 copies)"
        in text
    )


def test_evaluate_lists_a_layer_s_ranks_and_all_layers() -> None:
    ranks = run("evaluate", "map.json", "load.npy", "--layer", 1).stdout
    assert "│    1 │     3 │     17 │   1.700 │              3 │         16 │" in ranks
    layers = run("evaluate", "map.json", "load.npy", "--table").stdout
    assert "│     1 │       0.5882 │" in layers
    assert_one_line_error(run("evaluate", "map.json", "load.npy", "--layer", 2), "layer is 2")


def test_evaluate_of_no_tokens_and_of_other_counts(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((2, 4)))
    result = run("evaluate", "map.json", "none.npy")
    assert "hottest ranks: none" in result.stdout
    assert "every count is 0" in result.stderr
    np.save(tmp_path / "other.npy", np.ones((2, 5)))
    assert_one_line_error(run("evaluate", "map.json", "other.npy"), "2 layers and 5 experts")


def test_compare_is_a_table_of_plans(tmp_path: Path) -> None:
    load = np.random.default_rng(0).lognormal(size=(3, 16))
    np.save(tmp_path / "big.npy", load)
    arguments = (
        "compare",
        "big.npy",
        "--ep-size",
        4,
        "--policies",
        "balanced,deepseek",
        "--redundant",
        "0,8",
    )
    told = json.loads(run(*arguments, "--json").stdout)
    assert [(row["policy"], row["num_redundant_experts"]) for row in told["rows"]] == [
        ("balanced", 0),
        ("deepseek", 0),
        ("balanced", 8),
        ("deepseek", 8),
    ]
    text = run(*arguments).stdout
    for row in told["rows"]:
        slots = 16 + row["num_redundant_experts"]
        result = plan(load, num_physical_experts=slots, ep_size=4, policy=row["policy"])
        expected = metrics.overall_balancedness(result.placement, load)
        assert row["overall_balancedness"] == pytest.approx(expected, abs=1e-15)
        assert row["worst_balancedness"] == result.balancedness.min()
        assert result.balancedness[row["worst_layer"]] == row["worst_balancedness"]
        assert f"{expected:.4f}" in text


def test_compare_proposes_redundancy_and_refuses_what_cannot_be() -> None:
    told = json.loads(run("compare", "load.npy", "--ep-size", 3, "--json").stdout)
    assert [row["num_redundant_experts"] for row in told["rows"]] == [2, 2, 5, 5, 8, 8]
    compare = ("compare", "load.npy", "--ep-size", 2)
    assert_one_line_error(
        run(*compare, "--policies", "best"), "--policies is 'best'; expected one of", "did you mean balanced?"
    )
    assert_one_line_error(run(*compare, "--policies", ","), "--policies is ','")
    assert_one_line_error(run(*compare, "--redundant", "x"), "--redundant is 'x'")
    assert_one_line_error(run(*compare, "--redundant", ","), "--redundant is ','")
    assert_one_line_error(run(*compare, "--redundant", "1"), "nearest that work")


def test_evaluate_agrees_with_the_plan_that_is_read_back(tmp_path: Path) -> None:
    load = np.random.default_rng(0).lognormal(size=(3, 16))
    np.save(tmp_path / "big.npy", load)
    planned = json.loads(run("plan", "big.npy", "--ep-size", 4, "--output", "big.json", "--json").stdout)
    told = json.loads(run("evaluate", "big.json", "big.npy", "--json").stdout)
    assert told["balancedness"] == planned["balancedness"]
    assert told["digest"] == read_placement("big.json").digest


def test_a_map_with_dense_rows_carries_the_load_of_its_moe_layers(tmp_path: Path) -> None:
    rows = [[0, 0, 0, 0], [9, 1, 1, 1], [1, 1, 9, 1]]
    (tmp_path / "load.json").write_text(json.dumps({"logical_count": rows}))
    np.save(tmp_path / "rows.npy", np.array(rows))
    config = {"num_hidden_layers": 3, "n_routed_experts": 4, "first_k_dense_replace": 1}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "deepseek_v2"}))
    assert run("plan", "load.json", "--ep-size", 2, "--redundant", 2, "--output", "map.json").exit_code == 0
    assert run("convert", "map.json", "sglang.json", "--to", "sglang", "--layers", "1,2").exit_code == 0
    for command in (
        ("evaluate", "sglang.json", "load.json", "--ep-size", 2),
        ("evaluate", "sglang.json", "rows.npy", "--ep-size", 2, "--model", "config.json"),
        ("weights", "sglang.json", "load.json", "--ep-size", 2),
        ("rescale", "sglang.json", "load.json", "--ranks-now", 2, "--ep-size", 3),
        ("plan", "load.json", "--current", "sglang.json", "--ep-size", 2),
    ):
        result = run(*command, "--json")
        assert result.exit_code == 0, (command, result.output)
        assert json.loads(result.stdout)["num_layers"] == 2
    np.save(tmp_path / "moe.npy", np.array(rows)[1:])
    refused = run("evaluate", "sglang.json", "moe.npy", "--ep-size", 2)
    assert (
        "the map has a row for each of the model's 3 layers, dense ones too, and the load has 2 layers"
        in refused.stderr
    )
    assert "give --model" in refused.stderr
    told = run("rescale", "sglang.json", "load.json", "--ep-size", 3)
    assert_one_line_error(told, "how many ranks", "give --ranks-now")
