# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server with the plugin on two ranks: tensor parallel and data parallel; and what SIGTERM leaves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import tiny_models
from asking import TOKENS, assert_answers_as, config, report, run_alone
from engine import Run, server

from expert_maps import read_load

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, TOP_K = 4, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_alone(model, tmp_path_factory.mktemp("alone"))


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
    with server(model, tmp_path, "--data-parallel-size", "2", *options, forks=True) as running:
        assert_answers_as(alone, running)
        assert report(running)[0]["ep_size"] == 2
        assert balancedness(running.log)
        assert running.stop() == 0
    # Each rank has tokens of its own, and runs idle steps that count for nothing.
    assert read_load(record).total.sum(axis=1).tolist() == [TOKENS * TOP_K] * LAYERS
