# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Planning in threads and in forks of a process whose threads plan: the same answers, and no process that waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from expert_maps import generate_placement, plan, rescale, split_replicas

# Only ends a test that would hang.
LONG = 120
RNG = np.random.default_rng(7)
LOADS = [RNG.lognormal(sigma=1.5, size=(3, 2, 32)) for _ in range(4)]


def answers(load: np.ndarray) -> list[bytes]:
    """Call every part of the compiled library."""
    found = plan(load, ep_size=8, num_physical_experts=40)
    again = plan(load[::-1], ep_size=8, num_physical_experts=40, current=found.placement, max_moves=3)
    fewer = rescale(found.placement, load, failed_ranks=[2], num_physical_experts=42)
    nodes = plan(load, ep_size=8, num_physical_experts=40, num_nodes=2, num_groups=4)
    rows = [result.placement.physical_to_logical.tobytes() for result in (found, again, fewer, nodes)]
    return [*rows, split_replicas(found.placement, load).weights.tobytes()]


def test_eight_threads_plan_as_one_does() -> None:
    expected = [answers(load) for load in LOADS]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(answers, LOADS * 8, timeout=LONG))
    assert found == expected * 8


def test_threads_share_a_placement_whose_maps_are_made_once() -> None:
    for _ in range(20):
        placement = generate_placement(num_experts=16, ep_size=4, num_redundant_experts=8, num_layers=3)
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda _: placement.logical_to_physical, range(8), timeout=LONG))  # noqa: B023 - called at once
        assert len({id(array) for array in made}) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_plan_while_threads_of_the_parent_do() -> None:
    expected, stop = answers(LOADS[0]), threading.Event()

    def load() -> None:
        while not stop.is_set():
            answers(LOADS[1])

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        children = [_fork(expected) for _ in range(12)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONG)
    assert codes == [0] * 12


def _fork(expected: list[bytes]) -> int:
    child = os.fork()
    if child:
        return child
    signal.alarm(LONG)  # a child that waits for a lock of the parent's dies of it
    os._exit(answers(LOADS[0]) != expected)


def test_ctrl_c_ends_a_call_of_the_library_at_once() -> None:
    # Stands for a layer that takes many seconds.
    code = """
import ctypes, os, signal, threading, time
from expert_maps._native_call import call
# A background job of a shell ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
began = []
def interrupt():
    began.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.5, interrupt).start()
try:
    call(ctypes.CDLL(None).sleep, 60, keep=(), work=2**40)
except KeyboardInterrupt:
    print(time.monotonic() - began[0])
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LONG
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2, done.stdout
