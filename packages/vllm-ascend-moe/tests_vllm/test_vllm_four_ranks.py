# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server with the plugin on four ranks: two tensor-parallel ones for each of two data-parallel ones.

One of them is killed, and those that are left serve the same. Apart from the servers of two ranks, so that both can run at
a time.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny_models
from asking import (
    TOKENS,
    ask_record_on_ranks,
    assert_answers_as,
    config,
    processes,
    report,
    run_alone,
    worker_process,
)
from engine import server

from expert_maps import Placement, read_load, write_placement

if TYPE_CHECKING:
    from pathlib import Path

    from engine import Run, Server

# Four ranks of two GiB, and as much again.
FOUR_RANKS_GIB = 14
pytestmark = pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < FOUR_RANKS_GIB * 2**30,
    reason=f"four ranks need {FOUR_RANKS_GIB} GiB of memory",
)
FOUR = ["--tensor-parallel-size", "2", "--data-parallel-size", "2"]
MOVING = {"dynamic": True, "step_interval": 16, "window_size": 16, "min_gain": 0}
# From a rank's being killed to the server's end: vLLM itself gives the other data-parallel engine 30 seconds.
ENDED_SECONDS = 60


def assert_moved_and_right(alone: Run, running: Server) -> None:
    assert_answers_as(alone, running)
    found = report(running)
    assert found[0]["ep_size"] == 4
    assert found[0]["rearrangements"] > 0
    assert len({rank["digest"] for rank in found}) == 1


def wait_until_gone(session: int) -> None:
    """Wait for the end of all of a server's processes."""
    deadline = time.monotonic() + ENDED_SECONDS
    while left := processes(session):
        assert time.monotonic() < deadline, f"processes {left} are left behind"
        time.sleep(0.2)


def test_tensor_and_data_parallel_over_http(tmp_path: Path) -> None:
    # Tokens are split over tensor-parallel ranks.
    model = tiny_models.qwen3_moe(tmp_path / "model")
    alone = run_alone(model, tmp_path / "alone")
    record = tmp_path / "load.npz"
    options = config(num_redundant_experts=4, record_path=str(record), **MOVING)
    # Six processes.
    with server(model, tmp_path, *FOUR, *options, forks=True) as running:
        assert_moved_and_right(alone, running)
        assert running.stop() == 0
    assert read_load(record).total.sum(axis=1).tolist() == [TOKENS * 4] * 4


def test_three_ranks_serve_what_four_did_when_one_has_died(tmp_path: Path) -> None:
    # All tensor-parallel ranks see the same tokens.
    model = tiny_models.mixtral(tmp_path / "model")
    alone = run_alone(model, tmp_path / "alone")
    record, lived, three = (tmp_path / name for name in ("load.npz", "map.json", "three.json"))
    options = config(num_redundant_experts=4, record_path=str(record), **MOVING)
    with server(model, tmp_path / "four", *FOUR, *options, forks=True) as running:
        assert_moved_and_right(alone, running)
        ask_record_on_ranks(running, "dump")
        rows = report(running)[0]["physical_to_logical"]
        os.kill(worker_process(running.log, 3), signal.SIGKILL)
        # It ends by itself; its exit code is 0 all the same, which is vLLM's.
        wait_until_gone(running.process.pid)
        assert re.search(r"EngineCore_DP1 pid.* Worker proc VllmWorker-1 died unexpectedly", running.log)
    # Killed, it has lost no token that was written.
    counted = read_load(record).total.sum(axis=1).tolist()
    assert counted == [TOKENS * 2] * 3
    write_placement(Placement(np.array(rows), 4), lived)
    rescale = ["rescale", str(lived), str(record), "--failed-ranks", "3", "--output", str(three)]
    subprocess.run([sys.executable, "-m", "expert_maps", *rescale], check=True, timeout=120)
    options = config(expert_map_path=str(three), record_path=str(record))
    with server(model, tmp_path / "three", "--data-parallel-size", "3", *options, forks=True) as running:
        # What stands in the map's place meanwhile is for the next start.
        three.write_text("no map", encoding="utf-8")
        assert_answers_as(alone, running)
        assert [rank["ep_size"] for rank in report(running)] == [3]
        assert running.stop() == 0
    # The record has been continued.
    assert read_load(record).total.sum(axis=1).tolist() == [TOKENS * 2 * 2] * 3
