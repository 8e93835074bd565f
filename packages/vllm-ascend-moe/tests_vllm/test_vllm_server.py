# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server with the plugin on two ranks: tensor parallel and data parallel; and what SIGTERM leaves."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import tiny_models
from asking import (
    MAX_TOKENS,
    PROMPTS,
    TOKENS,
    ask_record,
    assert_answers_as,
    config,
    report,
    run_alone,
    scrape,
)
from engine import Run, server

from expert_maps import read_load
from vllm_ascend_moe.core.metric_table import sample_names
from vllm_ascend_moe.endpoints import NAME

if TYPE_CHECKING:
    from pathlib import Path

    from engine import Server

LAYERS, TOP_K = 4, 4
HIDDEN, INTERMEDIATE = 64, tiny_models.EXPERT_WIDTH


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_alone(model, tmp_path_factory.mktemp("alone"))


def balancedness(log: str) -> list[float]:
    return [float(value) for value in re.findall(r"balancedness=([0-9.]+)", log)]


def answer_while_dumped(alone: Run, running: Server) -> int:
    """Require the answers of one rank while the record is written; return how often it was."""
    written = 0
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(assert_answers_as, alone, running)
        while not answers.done():
            status, answer = ask_record(running, "dump")
            assert status == 200 or "nothing is recorded yet" in answer
            written += status == 200
        answers.result()
    return written


def assert_measured(running: Server, rearrangements: int) -> None:
    found = scrape(running)
    assert set(found) == sample_names()
    total = {name: sum(values.values()) for name, values in found.items()}
    assert total["expert_maps_rearrangements_total"] == rearrangements
    assert total["expert_maps_moving_seconds_count"] == rearrangements
    plans = rearrangements + total["expert_maps_rearrangements_skipped_total"]
    assert total["expert_maps_planning_seconds_count"] == plans
    assert 0 < total["expert_maps_planning_seconds_sum"] < 60
    # Each expert: gate, up and down projection in float32.
    slot = 3 * HIDDEN * INTERMEDIATE * 4
    for source, slots in found["expert_maps_moved_slots_total"].items():
        assert found["expert_maps_moved_bytes_total"][source] == slots * slot
    assert total["expert_maps_moved_slots_total"] >= rearrangements
    assert 0 < total["expert_maps_balancedness"] <= 1
    # Four layers are told one by one.
    assert sorted(found["expert_maps_peak_to_mean"]) == ["0", "1", "2", "3"]
    assert all(1 <= value <= 2 for value in found["expert_maps_peak_to_mean"].values())


def assert_strangers_are_refused(running: Server) -> None:
    for name, value in (
        ("X-Forwarded-For", "10.0.0.1"),
        ("Forwarded", "for=10.0.0.1"),
        ("Origin", "http://a.b"),
    ):
        status, why = ask_record(running, "start", **{name: value})
        assert status == 403
        assert ("asked from 10.0.0.1" if "X" in name else f"the header {name.lower()}") in why


def test_tensor_parallel_over_http(model: Path, alone: Run, tmp_path: Path) -> None:
    record, planned = tmp_path / "load.npz", tmp_path / "map.json"
    options = config(
        num_redundant_experts=4,
        step_interval=8,
        window_size=8,
        record_path=str(record),
        record_interval=1000,
        record_at_start=False,
    )
    # vLLM's own switch for EPLB, which it refuses on a CPU without the plugin.
    arguments = ["--tensor-parallel-size", "2", "--enable-eplb"]
    arguments += ["--eplb-config", '{"log_balancedness": true, "num_redundant_experts": 4}', *options]
    plugins = {"VLLM_PLUGINS": f"ascend_moe,{NAME}"}
    with server(model, tmp_path, *arguments, environ=plugins) as running:
        before = report(running)
        # Nothing is recorded until it is asked for.
        running.complete(PROMPTS[:2])
        assert scrape(running)["expert_maps_recording"] == {"": 0}
        assert_strangers_are_refused(running)
        assert ask_record(running, "dump")[0] == 409
        assert ask_record(running, "start")[1]["recording"]
        assert scrape(running)["expert_maps_recording"] == {"": 1}
        assert answer_while_dumped(alone, running) > 0
        after = report(running)
        status, answer = ask_record(running, "stop")
        assert (status, answer["recording"], answer["unwritten_steps"]) == (200, False, 0)
        assert answer["path"] == str(record)
        assert_measured(running, after[0]["rearrangements"])
        assert scrape(running)["expert_maps_recorded_rows_total"] == {"": answer["rows"]}
        running.complete(PROMPTS[:2])
        assert read_load(record).total.sum(axis=1).tolist() == [TOKENS * TOP_K] * LAYERS
        assert read_load(record).num_steps == answer["rows"]
        command = [sys.executable, "-m", "expert_maps", "plan", str(record), "--physical", "20"]
        subprocess.run([*command, "--ep-size", "2", "--output", str(planned)], check=True, timeout=120)
        assert after[0]["settings"]["dynamic"]
        assert after[0]["rearrangements"] > before[0]["rearrangements"]
        values = balancedness(running.log)
        assert len(values) > 8
        assert all(0 < value <= 1 for value in values)
        assert ask_record(running, "start", {"fresh": True})[0] == 200
        running.complete(PROMPTS[:1], MAX_TOKENS)
        assert running.stop() == 0
    # Begun anew; nothing had been due to be written when the signal came.
    tokens = len(PROMPTS[0]) + MAX_TOKENS - 1
    assert read_load(record).total.sum(axis=1).tolist() == [tokens * TOP_K] * LAYERS


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
