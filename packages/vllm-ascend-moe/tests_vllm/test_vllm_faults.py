# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults that only the workers can see: the server stops with a reason, and no rank is left waiting."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
from typing import TYPE_CHECKING

import pytest
import tiny_models
from asking import MAX_TOKENS, PROMPTS, config, processes
from engine import (
    FailedError,
    Server,
    fetch,
    free_port,
    random_prompts,
    run,
    start_server,
    wait_all,
)

from expert_maps import generate_placement, read_load, write_placement
from vllm_ascend_moe.core.recorder import LoadRecorder

if TYPE_CHECKING:
    from pathlib import Path

# From a rank's being killed to the server's end.
ENDED_SECONDS = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))


def test_a_map_for_another_number_of_layers(tmp_path: Path) -> None:
    # Four layers, the first of them dense: a map has rows for the others only.
    model = tiny_models.qwen3_moe_dense_first(tmp_path / "model")
    path = tmp_path / "map.json"
    write_placement(generate_placement(num_experts=8, ep_size=2, num_redundant_experts=2, num_layers=4), path)
    with pytest.raises(FailedError) as failure:
        run(
            model,
            random_prompts(1, 256),
            tmp_path / "run",
            tensor_parallel_size=2,
            expert_maps={"expert_map_path": str(path)},
        )
    log = str(failure.value)
    assert "map.json has 4 layers; expected 3, as many as the model has MoE layers" in log
    assert "it took too long" not in log


def test_ranks_that_were_given_different_files(model: Path, tmp_path: Path) -> None:
    port = free_port()
    started = []
    for rank, layout in enumerate(["ring", "append"]):
        path = tmp_path / f"{layout}.json"
        write_placement(
            generate_placement(layout, num_experts=16, ep_size=2, num_redundant_experts=4, num_layers=4), path
        )
        options = json.dumps({"expert_maps": {"expert_map_path": str(path)}})
        # Each rank is a server of its own, as on two nodes.
        arguments = ["--data-parallel-size", "2", "--data-parallel-rank", str(rank)]
        arguments += ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(port)]
        arguments += ["--additional-config", options]
        started.append(start_server(model, tmp_path / str(rank), *arguments, forks=True))
    codes = wait_all([process for process, _, _ in started], seconds=200)
    assert None not in codes, "a rank was left waiting"
    assert 0 not in codes
    for _, _, log in started:
        text = log.read_text(encoding="utf-8", errors="replace")
        assert "ranks have different placements: rank 0" in text
        assert "ring.json" in text
        assert "append.json" in text


def ask_until_it_ends(running: Server) -> None:
    """Ask as soon as it answers, again and again; what has died refuses."""
    while running.process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            fetch(running.port, "/health")
            running.complete(PROMPTS, MAX_TOKENS)
        time.sleep(0.2)


@pytest.mark.parametrize("phase", ["loading", "moving experts", "writing the record"])
def test_a_rank_is_killed_and_the_server_ends_and_says_so(model: Path, tmp_path: Path, phase: str) -> None:
    record, died = tmp_path / "load.npz", tmp_path / "died"
    options = config(
        num_redundant_experts=4,
        dynamic=True,
        step_interval=4,
        window_size=4,
        min_gain=0,
        record_path=str(record),
        record_interval=4,
    )
    arguments = ["--tensor-parallel-size", "2", "--worker-extension-cls", "dying.Dying", *options]
    environ = {"DIES_WHILE": phase, "DIED_AT": str(died)}
    process, port, log = start_server(model, tmp_path / "server", *arguments, environ=environ, forks=True)
    try:
        ask_until_it_ends(Server(process, port, str(model), log))
        ended = time.monotonic()
        assert processes(process.pid) == []
    finally:
        wait_all([process], 0)
    assert ended - float(died.read_text(encoding="ascii")) < ENDED_SECONDS
    text = log.read_text(encoding="utf-8", errors="replace")
    if phase == "writing the record":
        assert "Worker proc VllmWorker-0 died unexpectedly" in text
        # What was there before is whole, and the next server goes on with it.
        before = read_load(record).num_steps
        recorder = LoadRecorder(str(record), 4, 16)
        assert recorder.num_rows == before > 0
        recorder.close()
        assert [path.name for path in tmp_path.glob("*load*")] == ["load.npz"]
    else:
        assert f"rank 0 of 2 failed while {phase}" in text
