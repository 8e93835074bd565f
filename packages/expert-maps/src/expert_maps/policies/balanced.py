# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The project's own policy: a search that knows a lower bound and stops when it is near enough to it.

The search itself is compiled code (``native/``); ``docs/planner.md`` describes it and its sources.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._library import INTERFACE_VERSION, load_library
from expert_maps.errors import LayoutError
from expert_maps.policies._windows import START_TOLERANCE, coolest, draw_windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.load import ExpertLoad
    from expert_maps.policies.base import Cluster, Start

    Int32Array = NDArray[np.int32]
    Float64Array = NDArray[np.float64]

# Half a thousandth is below what a window of load can tell, and is reached in the time of a greedy packing.
DEFAULT_TOLERANCE = 4e-4
# What is less is rounding; the compiled planner allows a bound as much.
_ROUNDING = 1e-9
# Beyond small problems, restarts are worth their time only to those who ask for more than the default.
_MOST_KICKS = 64

# Layers times slots times experts times windows: less is done before anybody can interrupt it, and a thread costs as much.
_INTERRUPTIBLE_WORK = 2**23
_SECONDS_TO_BEGIN = 10

_PLANNED, _OUT_OF_MEMORY, _NOT_GROUPED, _BROKEN, _WRONG_BOUND, _OTHER_INTERFACE, _INTERRUPTED = range(7)


class _Problem(ctypes.Structure):
    """``Problem`` of ``native/plan.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("size", "version")),
        *(
            (name, ctypes.c_int64)
            for name in ("layers", "experts", "ranks", "nodes", "groups", "windows", "slots")
        ),
        *((name, ctypes.c_void_p) for name in ("capacity", "load", "window_load", "current", "held")),
        ("max_moves", ctypes.c_int64),
        ("max_kicks", ctypes.c_int64),
        ("effort", ctypes.c_int64),
        ("certify", ctypes.c_int64),
        ("tolerance", ctypes.c_double),
        ("cancelled", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("slot", "bound", "rank_load")),
    )

    def __init__(self, **fields: object) -> None:
        """Fill fields by name; the compiled planner refuses a structure of another size or version."""
        super().__init__(size=ctypes.sizeof(self), version=INTERFACE_VERSION, **fields)


def check_counts(num_experts: int, cluster: Cluster) -> None:
    """Refuse counts for which there is no placement by this policy.

    Raises:
        LayoutError: more slots than distinct copies, or slots that do not divide by the nodes.
    """
    nodes = cluster.num_nodes if cluster.is_hierarchical else 1
    most = num_experts * (cluster.ep_size // nodes)
    if cluster.num_physical_experts > most:
        where = f"on each of {cluster.ep_size} ranks" if nodes == 1 else "on each rank of its node"
        msg = (
            f"num_physical_experts is {cluster.num_physical_experts}; expected at most {most}: each of "
            f"{num_experts} experts once {where}"
        )
        raise LayoutError(msg)
    if cluster.num_physical_experts % nodes:
        msg = (
            f"num_physical_experts is {cluster.num_physical_experts}; expected a multiple of num_nodes {nodes}: "
            "every node has as many groups, and as many slots"
        )
        raise LayoutError(msg)


def balanced(
    load: ExpertLoad,
    cluster: Cluster,
    tolerance: float,
    start: Start | None = None,
    *,
    certify: bool = False,
    cancelled: ctypes.c_int32 | None = None,
    first_layer: int = 0,
) -> tuple[Int32Array, Float64Array]:
    """Plan.

    Args:
        load: [steps, L, E]; with several steps the sum over steps of the hottest rank is what is planned for, and no plan
            for their sum is better by it, nor the placement in use where that may stay.
        cluster: what to plan for, as `check_counts` accepts it.
        tolerance: stop a layer once its hottest rank is at most this fraction above the lower bound.
        start: where the experts are now; None to plan from scratch.
        certify: whether dear bounds are sought too, where the cheap ones do not reach the tolerance. The plan is the same.
        cancelled: ends the call soon where another thread sets it to 1; None where this one hears an interrupt by itself.
        first_layer: the number of the first of these layers, for messages.

    Returns:
        physical_to_logical: int32 [L, P].
        lower_bound: float64 [L], tokens; under the summed load no such placement's hottest rank carries less.

    Raises:
        LayoutError: the present placement has a group on several nodes, which ``max_moves`` cannot put right.
        MemoryError: there is too little of it.
        AssertionError: the answer is not what it should be; it is never returned.
    """
    of_sum, bound = _search(
        load, cluster, tolerance, start, certify=certify, cancelled=cancelled, first_layer=first_layer
    )
    if load.num_steps == 1:
        return of_sum, bound
    found = [over_windows(load, cluster, tolerance, start, cancelled), of_sum]
    return coolest(load, cluster, found, start), bound


def over_windows(
    load: ExpertLoad,
    cluster: Cluster,
    tolerance: float,
    start: Start | None = None,
    cancelled: ctypes.c_int32 | None = None,
) -> Int32Array:
    """Plan for the windows of a load, as `balanced` does before it compares with a plan for their sum."""
    windows, gap = draw_windows(load), max(tolerance, START_TOLERANCE)
    return _search(load, cluster, gap, start, windows, cancelled=cancelled)[0]


def _search(
    load: ExpertLoad,
    cluster: Cluster,
    tolerance: float,
    start: Start | None,
    windows: Float64Array | None = None,
    *,
    certify: bool = False,
    cancelled: ctypes.c_int32 | None = None,
    first_layer: int = 0,
) -> tuple[Int32Array, Float64Array]:
    """Call the compiled planner; without windows it plans for the sum. Raises as `balanced`."""
    tolerance = max(tolerance, _ROUNDING)
    # By a power of two, which is exact: a layer's largest load is about 1, and nothing over- or underflows.
    exponent = np.frexp(load.total.max(axis=1))[1]
    rows = np.empty((load.num_layers, cluster.num_physical_experts), dtype=np.int32)
    bound = np.empty(load.num_layers)
    arrays = {
        "capacity": cluster.slots_per_rank.astype(np.int32),
        "load": np.ascontiguousarray(np.ldexp(load.total, -exponent[:, None])),
        "window_load": windows,
        "current": None if start is None else np.ascontiguousarray(start.experts, dtype=np.int32),
        "held": None if start is None else np.ascontiguousarray(start.held, dtype=np.int32),
        "slot": rows,
        "bound": bound,
        "rank_load": np.empty((load.num_layers, cluster.ep_size)),
    }
    problem = _Problem(
        layers=load.num_layers,
        experts=load.num_experts,
        ranks=cluster.ep_size,
        nodes=cluster.num_nodes if cluster.is_hierarchical else 1,
        groups=cluster.num_groups if cluster.is_hierarchical else 1,
        windows=1 if windows is None else windows.shape[1],
        slots=cluster.num_physical_experts,
        max_moves=-1 if start is None or start.max_moves is None else start.max_moves,
        effort=0 if start is None or start.effort is None else start.effort,
        max_kicks=int(min(max(4 * (DEFAULT_TOLERANCE / tolerance - 1), 0), _MOST_KICKS)),
        certify=certify,
        tolerance=tolerance,
        **{name: None if array is None else array.ctypes.data for name, array in arrays.items()},
    )
    status = _call(problem, cancelled)
    if status == _OUT_OF_MEMORY:
        raise MemoryError
    _refuse_broken(status, arrays)
    if status == _NOT_GROUPED:
        raise _spread(first_layer + int(np.argmax(bound < 0)), cluster)
    return rows, np.ldexp(bound, exponent)


def _spread(layer: int, cluster: Cluster) -> LayoutError:
    """Return the error of a group that is spread over nodes and may not be brought together."""
    msg = (
        f"current has an expert group on several nodes in layer {layer}; expected each of the "
        f"{cluster.num_groups} groups on one of {cluster.num_nodes} nodes, or no max_moves"
    )
    return LayoutError(msg)


def _call(problem: _Problem, cancelled: ctypes.c_int32 | None) -> int:
    """Call the compiled planner so that an interrupt, which only the main thread hears, and between its own steps, ends it.

    Args:
        problem: what is asked.
        cancelled: what another thread ends it by; None where this one may have to.

    Returns:
        Its status.
    """
    function = load_library().expert_maps_plan
    if cancelled is not None:
        problem.cancelled = ctypes.addressof(cancelled)
        return int(function(ctypes.byref(problem)))
    work = problem.layers * problem.slots * problem.experts * problem.windows
    if work < _INTERRUPTIBLE_WORK or threading.current_thread() is not threading.main_thread():
        return int(function(ctypes.byref(problem)))
    cancelled = ctypes.c_int32(0)
    problem.cancelled = ctypes.addressof(cancelled)
    answers: list[int] = []
    begun, done = threading.Event(), threading.Event()

    def answer() -> None:
        begun.set()
        try:
            answers.append(int(function(ctypes.byref(problem))))
        finally:
            done.set()

    worker = threading.Thread(target=answer, name="expert-maps")
    try:
        worker.start()  # an interrupt can come in here too
        done.wait()
    finally:
        cancelled.value = 1
        # What it reads and writes must outlive it, whoever is impatient. (After an interrupt `Thread.join` returns at once.)
        while not done.is_set():
            with contextlib.suppress(KeyboardInterrupt):
                if not begun.wait(_SECONDS_TO_BEGIN):
                    break  # nor will it
                done.wait()
    worker.join()
    return answers[0]


def _refuse_broken(status: int, arrays: dict[str, Float64Array | Int32Array | None]) -> None:
    """Refuse what the compiled planner itself found wrong with its answer, or with the call.

    Raises:
        AssertionError: as said.
        KeyboardInterrupt: another thread has ended the call.
    """
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    if status == _OTHER_INTERFACE:
        msg = f"the compiled planner has another interface than {INTERFACE_VERSION}"
        raise AssertionError(msg)
    if status == _BROKEN:
        msg = "the planner's answer is no placement: please report this load and these counts"
        raise AssertionError(msg)
    if status == _WRONG_BOUND:
        bound, rank_load = arrays["bound"], arrays["rank_load"]
        assert bound is not None
        assert rank_load is not None
        peak = rank_load.max(axis=1)
        layer = int(np.argmax(bound - peak * (1 + _ROUNDING)))
        msg = (
            f"the planner's lower bound of layer {layer} of these is {bound[layer]:.17g} and its plan's hottest rank carries "
            f"{peak[layer]:.17g}, in units in which the largest load is about 1; expected a bound that is no higher: one of "
            "both is wrong, please report this load and these counts"
        )
        raise AssertionError(msg)
