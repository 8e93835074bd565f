# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Plans on several threads are the plans of one, and what ends one ends all."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import numpy as np
import pytest

from expert_maps import LayoutError, Placement, generate_placement, plan, planning
from expert_maps._blocks import in_blocks
from expert_maps.load import ExpertLoad, as_load
from expert_maps.policies.balanced import balanced
from expert_maps.policies.base import Cluster

DRAW = np.random.default_rng(7)
LOAD = DRAW.lognormal(sigma=1.2, size=(11, 32))
CLUSTER: dict[str, Any] = {"ep_size": 8, "num_physical_experts": 40}
START = generate_placement(num_layers=11, num_experts=32, num_redundant_experts=8, ep_size=8, layout="ring")


@pytest.mark.parametrize(
    ("load", "options"),
    [
        (LOAD, {}),
        (LOAD, {"num_groups": 8, "num_nodes": 2}),
        (LOAD, {"current": START}),
        (LOAD, {"current": START, "max_moves": 3, "certify": True}),
        (DRAW.lognormal(size=(5, 11, 32)), {"tolerance": 0.01}),
    ],
    ids=["anew", "groups", "current", "budget", "windows"],
)
def test_the_plan_is_the_same(load: Any, options: dict[str, Any]) -> None:  # noqa: ANN401 - an array
    one = plan(load, **CLUSTER, **options)
    for threads in (2, 3, 20):
        progress: list[tuple[int, int]] = []
        more = plan(
            load,
            **CLUSTER,
            **options,
            num_threads=threads,
            progress=lambda *done, told=progress: told.append(done),
        )
        assert more.placement == one.placement
        assert np.array_equal(more.lower_bound, one.lower_bound)
        assert progress == sorted(progress)
        assert progress[-1] == (11, 11)
        assert len(progress) >= min(threads, 2)


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.0, True])
def test_a_number_of_threads_that_is_none_is_refused(threads: Any) -> None:  # noqa: ANN401
    with pytest.raises(LayoutError, match=f"num_threads is {threads}; expected"):
        plan(LOAD, **CLUSTER, num_threads=threads)


def test_other_policies_have_none() -> None:
    with pytest.raises(LayoutError, match="num_threads"):
        plan(LOAD, **CLUSTER, policy="deepseek_global", num_threads=2)


def test_blocks_are_done_on_threads_of_their_own_and_come_back_in_order() -> None:
    both = threading.Barrier(2, timeout=30)

    def do(block: slice) -> tuple[int, str]:
        both.wait()  # only together
        return block.start, threading.current_thread().name

    found = in_blocks(do, 4, 1, num_threads=2)
    assert [start for start, _ in found] == [0, 2]
    assert len({name for _, name in found}) == 2


def test_an_error_or_interrupt_ends_what_is_being_planned_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ctypes.c_int32] = []
    begun = threading.Barrier(2, timeout=30)

    def fail(part: ExpertLoad, *_: object, cancelled: ctypes.c_int32, **__: object) -> None:
        seen.append(cancelled)
        begun.wait()
        if np.array_equal(part.total[0], LOAD[0]):
            raise MemoryError
        while not cancelled.value:
            time.sleep(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "balanced", fail)
    with pytest.raises(MemoryError):
        plan(LOAD, **CLUSTER, num_threads=2)
    assert [one.value for one in seen] == [1, 1]


def test_the_compiled_planner_stops_where_it_is_told_to() -> None:
    with pytest.raises(KeyboardInterrupt):
        balanced(as_load(LOAD), Cluster(40, 8), 4e-4, cancelled=ctypes.c_int32(1))


@pytest.mark.parametrize("threads", [1, 2, 11])
def test_a_layer_is_named_by_its_number_among_all(threads: int) -> None:
    grouped = plan(LOAD, **CLUSTER, num_groups=8, num_nodes=2).placement.physical_to_logical.copy()
    grouped[9] = plan(LOAD, **CLUSTER).placement.physical_to_logical[9]
    current = Placement(grouped, 8, num_logical_experts=32)
    with pytest.raises(LayoutError, match="on several nodes in layer 9;"):
        plan(LOAD, **CLUSTER, num_groups=8, num_nodes=2, current=current, max_moves=3, num_threads=threads)
