# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# As vLLM and vllm-ascend do it: a worker with a handler of SIGTERM forks processes, which hold the worker's pipe.
WORKER = """
import multiprocessing, os, signal, sys, time
from multiprocessing import Manager
from vllm_ascend_moe.backends.ascend import process as ascend_process

def raise_once(*_):
    raise SystemExit

class Planner:
    def worker_process(self, planner_q, block_update_q):
        while True:
            try:
                planner_q.get()
            except BaseException:
                pass  # holds on

def around(process, planner_q, block_update_q):
    return ascend_process.around_worker_process(Planner.worker_process, process, planner_q, block_update_q)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    multiprocessing.set_start_method("fork")
    signal.signal(signal.SIGTERM, raise_once)
    manager = ascend_process.around_manager(Manager)
    shared = manager.dict({"moe_load": 1})
    process = context.Process(target=around, args=(Planner(), context.Queue(), context.Queue()), daemon=True)
    process.start()
    time.sleep(0.5)
    print(process.pid, manager._process.pid, shared["moe_load"], flush=True)
    if sys.argv[1] == "fails":
        raise RuntimeError("the worker fails")
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent has ended")
@pytest.mark.parametrize("how", ["fails", signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_worker_and_holds_its_pipe(how: str | signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    argument = how if isinstance(how, str) else "waits"
    worker = subprocess.Popen(
        [sys.executable, str(script), argument], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    children: list[int] = []
    try:
        assert worker.stdout is not None
        *pids, shared = map(int, worker.stdout.readline().split())
        children = pids
        assert shared == 1
        assert all(is_alive(child) for child in children)
        if not isinstance(how, str):
            worker.send_signal(how)
        # The end of the pipe is what vLLM waits for.
        worker.communicate(timeout=20)
        assert wait_for_end(children)
    finally:
        for process in (*children, worker.pid):
            if is_alive(process):
                os.kill(process, signal.SIGKILL)


def wait_for_end(children: list[int]) -> bool:
    for _ in range(100):
        if not any(is_alive(child) for child in children):
            return True
        time.sleep(0.1)
    return False


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
