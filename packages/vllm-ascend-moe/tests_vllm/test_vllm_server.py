# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server with the plugin: tensor parallel, data parallel and both; and what SIGTERM leaves."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny_models
from engine import IN_PROCESS, Run, Server, random_prompts, run, server

from expert_maps import read_load

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = random_prompts(64, 256, seed=2)
MAX_TOKENS = 12
TOKENS = sum(len(prompt) for prompt in PROMPTS) + len(PROMPTS) * (MAX_TOKENS - 1)
LAYERS, TOP_K = 4, 4
# Four ranks of two GiB, and as much again.
FOUR_RANKS_GIB = 14


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(model, PROMPTS, tmp_path_factory.mktemp("alone"), max_tokens=MAX_TOKENS, environ=IN_PROCESS)


def config(**options: Any) -> tuple[str, str]:  # noqa: ANN401 - JSON
    return "--additional-config", json.dumps({"expert_maps": options})


def report(running: Server) -> list[dict[str, Any]]:
    answer = running.post("/collective_rpc", {"method": "expert_maps_report"})
    found: list[dict[str, Any]] = answer["results"]
    return found


def assert_answers_as(alone: Run, running: Server) -> None:
    choices = running.complete(PROMPTS, MAX_TOKENS)
    assert [choice["token_ids"] for choice in choices] == alone.tokens[0]
    for choice, output in zip(choices, alone.rounds[0], strict=True):
        expected = output["logprobs"][-MAX_TOKENS:]
        assert np.abs(np.array(choice["logprobs"]["token_logprobs"]) - expected).max() <= 1e-4


def balancedness(log: str) -> list[float]:
    return [float(value) for value in re.findall(r"balancedness=([0-9.]+)", log)]


def test_tensor_parallel_over_http(model: Path, alone: Run, tmp_path: Path) -> None:
    record = tmp_path / "load.npz"
    options = config(
        num_redundant_experts=4, step_interval=8, window_size=8, record_path=str(record), record_interval=1000
    )
    # vLLM's own switch for EPLB, which it refuses on a CPU without the plugin.
    arguments = ["--tensor-parallel-size", "2", "--enable-eplb"]
    arguments += ["--eplb-config", '{"log_balancedness": true, "num_redundant_experts": 4}', *options]
    with server(model, tmp_path, *arguments) as running:
        before = report(running)
        assert_answers_as(alone, running)
        after = report(running)
        assert after[0]["settings"]["dynamic"]
        assert after[0]["rearrangements"] > before[0]["rearrangements"]
        values = balancedness(running.log)
        assert len(values) > 8
        assert all(0 < value <= 1 for value in values)
        assert running.stop() == 0
    # Nothing had been due to be written when the signal came.
    assert read_load(record).total.sum(axis=1).tolist() == [TOKENS * TOP_K] * LAYERS


def test_data_parallel_over_http(model: Path, alone: Run, tmp_path: Path) -> None:
    record = tmp_path / "load.npz"
    options = config(num_redundant_experts=4, record_path=str(record), log_balancedness=True)
    with server(model, tmp_path, "--data-parallel-size", "2", *options) as running:
        assert_answers_as(alone, running)
        assert report(running)[0]["ep_size"] == 2
        assert balancedness(running.log)
        assert running.stop() == 0
    # Each rank has tokens of its own, and runs idle steps that count for nothing.
    assert read_load(record).total.sum(axis=1).tolist() == [TOKENS * TOP_K] * LAYERS


@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < FOUR_RANKS_GIB * 2**30,
    reason=f"four ranks need {FOUR_RANKS_GIB} GiB of memory",
)
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_tensor_and_data_parallel_over_http(name: str, model: Path, alone: Run, tmp_path: Path) -> None:
    # The first splits its tokens over tensor-parallel ranks, in the second they all see the same.
    if name != "qwen3_moe":
        model = getattr(tiny_models, name)(tmp_path / name)
        alone = run(model, PROMPTS, tmp_path / "alone", max_tokens=MAX_TOKENS, environ=IN_PROCESS)
    record = tmp_path / "load.npz"
    options = config(
        num_redundant_experts=4, dynamic=True, step_interval=16, window_size=16, record_path=str(record)
    )
    arguments = ["--tensor-parallel-size", "2", "--data-parallel-size", "2", *options]
    # Six processes; those of the two tests above are started anew.
    with server(model, tmp_path, *arguments, forks=True) as running:
        assert_answers_as(alone, running)
        found = report(running)
        assert found[0]["ep_size"] == 4
        assert found[0]["rearrangements"] > 0
        assert len({rank["digest"] for rank in found}) == 1
        assert running.stop() == 0
    layers, top_k = {"qwen3_moe": (LAYERS, TOP_K), "mixtral": (3, 2)}[name]
    assert read_load(record).total.sum(axis=1).tolist() == [TOKENS * top_k] * layers
