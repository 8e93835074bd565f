# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`pytest harness/bench --benchmark-only --benchmark-json=FILE`: options beside pytest-benchmark's own, and the record."""

from __future__ import annotations

from typing import Any

import pytest

from harness.bench.npu.pinning import pin

# Before torch is imported, which reads its threads then.
PINNED = pin()

from harness.bench.npu import bench, devices, inputs  # noqa: E402 - see above
from harness.bench.npu.families import FAMILIES  # noqa: E402
from harness.record.provenance import describe, device_of  # noqa: E402

BENCH = pytest.StashKey[bench.Bench]()
ALL = pytest.StashKey[list[str]]()
FAULTS = pytest.StashKey[dict[str, str]]()
_SHORT = bench.Pace(budget_s=0.06)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what pytest-benchmark has no option for."""
    group = parser.getgroup("npu ops")
    group.addoption(
        "--npu-device", default="auto", help="npu, cuda or cpu; auto takes the first that is here"
    )
    group.addoption("--npu-short", action="store_true", help="few shapes and token counts, for CI")


def pytest_configure(config: pytest.Config) -> None:
    """Find the device.

    Raises:
        UsageError: it is not here, or pytest-benchmark would time nothing.
    """
    if not config.pluginmanager.hasplugin("benchmark"):
        msg = "pytest-benchmark is not loaded; expected it: pip install pytest-benchmark"
        raise pytest.UsageError(msg)
    try:
        device = devices.detect(config.getoption("--npu-device"))
    except devices.NoDeviceError as error:
        raise pytest.UsageError(str(error)) from error
    pace = _SHORT if config.getoption("--npu-short") else bench.Pace()
    config.stash[BENCH] = bench.Bench(device, pace)
    config.stash[FAULTS] = {}
    # What vLLM and torch deprecate is no fault of an op.
    config.addinivalue_line("filterwarnings", "default")


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is timed, and on what."""
    return devices.first_line(config.stash[BENCH].device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each point, with the device's clock."""
    if "point" in metafunc.fixturenames:
        device = metafunc.config.stash[BENCH].device
        timed = pytest.mark.benchmark(timer=device.clock, disable_gc=True)
        points = bench.points_of(FAMILIES.values(), device.kind)
        metafunc.parametrize("point", [pytest.param(point, id=point.name, marks=timed) for point in points])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note what there is before -k and others choose from it, and leave out what the short form does."""
    points = {item: point for item in items if (point := _point(item)) is not None}
    config.stash[ALL] = [point.name for point in points.values()]
    if config.getoption("--npu-short"):
        out = [item for item, point in points.items() if not inputs.is_short(point.case)]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]


def _point(item: pytest.Item) -> bench.Point | None:
    callspec = getattr(item, "callspec", None)
    found = None if callspec is None else callspec.params.get("point")
    return found if isinstance(found, bench.Point) else None


@pytest.fixture
def npu_bench(request: pytest.FixtureRequest) -> bench.Bench:
    """Return what checks and times, one for the run."""
    return request.config.stash[BENCH]


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return where faults are noted: benchmark and implementation → what is wrong."""
    return request.config.stash[FAULTS]


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:  # noqa: ANN401, ARG001
    """Say in pytest-benchmark's JSON where it was measured, and what was not timed."""
    device = config.stash[BENCH].device
    described = describe(device_of(device.kind, device.name)).model_dump(mode="json")
    # Of the host, which has a name there.
    output_json["machine_info"].pop("node", None)
    output_json["npu_ops"] = {
        "provenance": described,
        "device": device.slug,
        "pinned": PINNED,
        "all": config.stash[ALL],
        "faults": config.stash[FAULTS],
        "left_out": bench.left_out(FAMILIES.values(), device.kind),
    }
