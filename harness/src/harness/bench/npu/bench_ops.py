# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks, for pytest-benchmark; started by `python -m harness.bench.npu`, which names this file.

Each is checked against its reference first: what differs gets a status and no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.bench.npu.cases import Selection
from harness.bench.npu.checking import DiffersError
from harness.bench.npu.devices import detect
from harness.bench.npu.families import FAMILIES
from harness.bench.npu.plugin import BENCH, PLAN, PLANNED, append_outcome
from harness.bench.npu.points import COPY_TIMES, Bench, Pace, Point, once, points_of
from harness.bench.npu.records import COPY

if TYPE_CHECKING:
    from collections.abc import Callable

_WARMUP_ROUNDS = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each point of the plan, with the device's timer."""
    config = metafunc.config
    plan = config.stash[PLAN]
    if BENCH not in config.stash:
        config.stash[BENCH] = Bench(detect(plan.device))
    device = config.stash[BENCH].device
    timed = pytest.mark.benchmark(timer=device.timer, disable_gc=True)
    if "point" in metafunc.fixturenames:
        selection = _selection(plan.selection)
        points = points_of(FAMILIES.values(), selection, device.kind)
        names = None if plan.only is None else set(plan.only)
        chosen = [point for point in points if names is None or point.name in names]
        for point in chosen:
            append_outcome(config, {"benchmark": point.name, **point.describe(), "status": PLANNED})
        metafunc.parametrize("point", [pytest.param(point, id=point.name, marks=timed) for point in chosen])
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", [pytest.param(metafunc.function.place, marks=timed)])


def test_copy_at_start(place: str, benchmark: Any, request: pytest.FixtureRequest) -> None:  # noqa: ANN401
    """Time a copy from memory to memory, before everything else."""
    _time_copy(place, benchmark, request.config)


def test_op(point: Point, benchmark: Any, request: pytest.FixtureRequest) -> None:  # noqa: ANN401
    """Check an implementation, then time it."""
    bench, outcome = request.config.stash[BENCH], {"benchmark": point.name, **point.describe()}
    try:
        run = bench.ready(point)
    except DiffersError as error:
        append_outcome(request.config, {**outcome, "status": "wrong", "detail": str(error)})
        pytest.fail(str(error), pytrace=False)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        append_outcome(request.config, {**outcome, "status": "error", "detail": detail})
        raise
    pace = Pace(**request.config.stash[PLAN].pace)
    _time(benchmark, bench, run, point.variant, pace)
    append_outcome(request.config, {**outcome, "status": "ok", **_figures(benchmark)})


def test_copy_at_end(place: str, benchmark: Any, request: pytest.FixtureRequest) -> None:  # noqa: ANN401
    """Time the copy again, after everything else."""
    _time_copy(place, benchmark, request.config)


def _selection(fields: dict[str, Any]) -> Selection:
    """Return what was a selection before it was JSON, which has no tuples."""
    changed: Any = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Selection(**changed)


test_copy_at_start.place, test_copy_at_end.place = COPY_TIMES  # type: ignore[attr-defined]


def _time(benchmark: Any, bench: Bench, run: Callable[[], object], variant: str, pace: Pace) -> None:  # noqa: ANN401
    """Time a call: by itself with its buffers warm or cold, or as one of many between two synchronisations."""
    device = bench.device
    once(device, run)
    seconds = once(device, run)
    # What takes a second need not be warmed up twice.
    warmup = _WARMUP_ROUNDS if seconds < pace.budget_s else 0
    if variant == "pipelined":
        calls = pace.calls(seconds)
        rounds = pace.rounds(seconds * calls)
        benchmark.pedantic(run, rounds=rounds, iterations=calls, warmup_rounds=warmup)
    elif variant == "cold":
        # pedantic allows one call a round with a setup: as it must be, a second one would find the cache warm.
        both = seconds + once(device, device.flush)
        benchmark.pedantic(run, setup=device.flush, rounds=pace.rounds(both), warmup_rounds=warmup)
    else:
        benchmark.pedantic(run, rounds=pace.rounds(seconds), warmup_rounds=warmup)


def _time_copy(place: str, benchmark: Any, config: pytest.Config) -> None:  # noqa: ANN401
    bench = config.stash[BENCH]
    size = bench.device.copy_bytes
    source = torch.arange(size // 4, dtype=torch.int32, device=bench.device.kind)
    target = torch.zeros_like(source)

    def run() -> None:
        target.copy_(source)

    _time(benchmark, bench, run, "warm", Pace(least_rounds=15))
    described = {
        "op": COPY,
        "implementation": "torch",
        "about": f"copy_ of {size >> 20} MiB into a buffer that is there",
        "is_peer": False,
        "model": "-",
        "phase": place,
        "tokens": 0,
        "variant": "warm",
        "bytes_moved": 2 * size,
        "flops": 0,
    }
    name = f"{COPY}/torch/-/{place}/0/warm"
    status: dict[str, object] = {"status": "ok", **_figures(benchmark)}
    if not torch.equal(target, source):
        status = {"status": "wrong", "detail": "the copy differs from what was copied"}
    append_outcome(config, {"benchmark": name, **described, **status})
    assert status["status"] == "ok", status


def _figures(benchmark: Any) -> dict[str, object]:  # noqa: ANN401 - pytest-benchmark has no types
    """Return the times of a call in microseconds."""
    stats = benchmark.stats.stats
    return {
        "median_us": stats.median * 1e6,
        "iqr_us": stats.iqr * 1e6,
        "min_us": stats.min * 1e6,
        "max_us": stats.max * 1e6,
        "rounds": stats.rounds,
        "calls_per_round": benchmark.stats.iterations,
    }
