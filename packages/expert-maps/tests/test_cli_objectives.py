# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`plan --objective activated`, `plan --redundancy per-layer` and `evaluate` of batches, as a user meets them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import plan, read_placement
from expert_maps.activation import Batch, activated
from expert_maps.formats import read_any_placement

if TYPE_CHECKING:
    from pathlib import Path

LOAD = np.floor(1000 * np.random.default_rng(0).lognormal(size=(4, 16)))
BATCH = ("--batch-tokens", 12, "--top-k", 2)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("load.npy", LOAD)
    np.save("steps.npy", np.random.default_rng(1).poisson(1.0, size=(20, 4, 16)))


def test_a_plan_by_activated_slots_is_written_and_told() -> None:
    words = ("plan", "load.npy", "--ep-size", 4, "--redundant", 4, "--objective", "activated", *BATCH)
    result = run(*words, "-o", "map.json")
    assert result.exit_code == 0, result.output
    for text in (
        "batch: batches of 12 tokens of top 2, tokens go to any copy of an expert",
        "planned by tokens",
        "gap to the proved lower bound, activated slots: ",
        "written: map.json",
    ):
        assert text in result.stdout
    told = json.loads(run(*words, "--json").stdout)
    wanted = plan(LOAD, ep_size=4, num_redundant_experts=4, objective="activated", batch=Batch(12, 2))
    assert wanted.activation is not None
    assert read_placement("map.json") == wanted.placement
    assert told["digest"] == wanted.placement.digest
    assert told["objective"] == "activated"
    assert told["batch"] == {"tokens": 12, "top_k": 2, "copies": "split"}
    assert told["activated"] == wanted.activation.busiest.tolist()
    assert told["activated_by_tokens"] == wanted.activation.by_tokens.tolist()
    assert told["activated_lower_bound"] == wanted.activation.lower_bound.tolist()


def test_evaluate_counts_what_a_batch_activates() -> None:
    assert run("plan", "load.npy", "--ep-size", 4, "--redundant", 4, "-o", "map.json").exit_code == 0
    placement = read_placement("map.json")
    told = json.loads(
        run("evaluate", "map.json", "load.npy", *BATCH, "--copy-choice", "one", "--json").stdout
    )
    assert told["activated"] == activated(placement, LOAD, Batch(12, 2, "one")).tolist()
    steps = np.load("steps.npy")
    result = run("evaluate", "map.json", "steps.npy", "--steps", "all", "--activated")
    mean = activated(placement, steps, Batch()).max(axis=1).mean()
    assert "batch: each step a batch, tokens go to any copy of an expert" in result.stdout
    assert f"activated slots of the busiest rank: mean over layers {mean:.3f}" in result.stdout
    assert "activated" not in run("evaluate", "map.json", "load.npy").stdout


def test_a_trace_of_routed_experts_is_planned_for_batch_by_batch() -> None:
    rng = np.random.default_rng(3)
    ids = np.argsort(rng.gumbel(size=(40, 2, 16)) - np.linspace(0, 3, 16), axis=2)[:, :, :3]
    np.save("routed_experts.npy", ids)
    words = ("plan", "routed_experts.npy", "--experts", 16, "--window", 8, "--ep-size", 4)
    told = json.loads(run(*words, "--objective", "activated", "--json", "-o", "map.json").stdout)
    assert told["batch"] == {"tokens": None, "top_k": None, "copies": "split"}
    placement = read_placement("map.json")
    for layer in range(2):
        active = [set(batch[:, layer].ravel().tolist()) for batch in ids.reshape(5, 8, 2, 3)]
        of_rank = [
            np.mean([len(each & set(placement.local_experts(layer, rank).tolist())) for each in active])
            for rank in range(4)
        ]
        assert told["activated"][layer] == pytest.approx(max(of_rank))


def test_a_plan_by_layers_is_written_read_and_evaluated() -> None:
    words = ("plan", "load.npy", "--ep-size", 4, "--redundant", 2, "--redundancy", "per-layer")
    result = run(*words, "-o", "map.json", "--table")
    assert result.exit_code == 0, result.output
    assert "slots of a rank, by layers: 4 in 2, 5 in 2; 18 of a budget of 18 over all layers" in result.stdout
    assert "vLLM, vllm-ascend, SGLang and TensorRT-LLM need as many in each" in result.stdout
    assert "with equal slots" in result.stdout
    told = json.loads(run(*words, "--json").stdout)
    placement = read_any_placement("map.json")
    assert placement.digest == told["digest"]
    assert told["slots_of_a_rank"] == placement.slots_per_rank[:, 0].tolist()
    assert not told["equal_in_every_layer"]
    assert told["least_cost"] <= told["cost"] < told["cost_with_equal_slots"]
    evaluated = json.loads(run("evaluate", "map.json", "load.npy", "--json").stdout)
    assert evaluated["overall_balancedness"] == pytest.approx(told["overall_balancedness"])
    assert run("convert", "map.json", "map.npy", "--to", "omni").exit_code == 0


def test_a_plan_by_layers_that_comes_out_equal_is_a_map_that_servers_read() -> None:
    words = (
        "plan",
        "load.npy",
        "--ep-size",
        4,
        "--redundant",
        4,
        "--redundancy",
        "per-layer",
        "--tolerance",
        1e-6,
    )
    result = run(*words, "-o", "map.json")
    if "every server takes it" in result.stdout:
        assert read_placement("map.json").num_redundant_experts == 4


def test_a_plan_by_layers_writes_the_map_that_it_tells() -> None:
    # Where any number of slots costs the same, it takes none, and the map has none either.
    np.save("alike.npy", np.full((3, 16), 10))
    words = (
        "plan",
        "alike.npy",
        "--ep-size",
        4,
        "--redundant",
        16,
        "--redundancy",
        "per-layer",
        "-o",
        "map.json",
    )
    told = json.loads(run(*words, "--json").stdout)
    assert told["num_redundant_experts"] == [0, 0, 0]
    written = read_placement("map.json")
    assert (written.num_redundant_experts, written.digest) == (0, told["digest"])


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("--objective", "fast"), ("--objective is 'fast'; expected one of tokens, activated",)),
        (("--redundancy", "some"), ("--redundancy is 'some'; expected one of equal, per-layer",)),
        (("--redundancy", 4), ("--redundancy is 4; expected one of equal, per-layer; did you mean --redundant?",)),
        (("--batch-tokens", 4), ("--batch-tokens is 4; expected none with --objective tokens",)),
        (("--copy-choice", "one"), ("--copy-choice is one; expected none with --objective tokens",)),
        (("--objective", "activated", "--top-k", 2), ("--top-k is 2; expected both --batch-tokens and --top-k",)),
        (("--objective", "activated", *BATCH, "--copy-choice", "all"), ("--copy-choice is 'all'; expected one of split, one",)),
        (("--objective", "activated"), ("--batch-tokens is not given, and the load has 1 step; expected --batch-tokens and --top-k",)),
        (("--objective", "activated", "--batch-tokens", 4, "--top-k", 17), ("--top-k is 17; expected at most 16",)),
        (("--objective", "activated", "--batch-tokens", 4, "--top-k", 16), ("--top-k is 16, and expert",)),
        (("--objective", "activated", *BATCH, "--policy", "deepseek"), ("--policy is deepseek; expected none with --objective activated",)),
        (("--objective", "activated", *BATCH, "--redundancy", "per-layer"), ("--objective is activated; expected none with --redundancy per-layer",)),
        (("--redundancy", "per-layer", "--certify"), ("--certify is given; expected none with --redundancy per-layer",)),
        (("--redundancy", "per-layer", "--policy", "deepseek"), ("--policy is deepseek; expected none",)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    tmp_path: Path, words: tuple[object, ...], fragments: tuple[str, ...]
) -> None:
    assert_one_line_error(run("plan", "load.npy", "--ep-size", 4, *words, "-o", "map.json"), *fragments)
    assert not (tmp_path / "map.json").exists()
