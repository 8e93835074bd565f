# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin of the benchmark: what is timed, on what, and where the outcomes go. Loads no torch.

Loaded by name (`-p harness.bench.npu.plugin`), because a conftest.py would be found by other runs too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.bench.npu.points import Bench

_PLAN = "--npu-bench-plan"
_OUTCOMES = "--npu-bench-outcomes"
# The status of what is yet to be timed: whoever still has it at the end was lost in a crash.
PLANNED = "planned"
PLAN: pytest.StashKey[Plan] = pytest.StashKey()
BENCH: pytest.StashKey[Bench] = pytest.StashKey()


@dataclass(frozen=True)
class Plan:
    """What the command line hands over, as JSON.

    Attributes:
        device: "npu", "cuda" or "cpu".
        selection: the fields of a `Selection`.
        pace: the fields of a `Pace`.
        only: names of benchmarks, None for all of the selection.
    """

    device: str
    selection: dict[str, Any] = field(default_factory=dict)
    pace: dict[str, Any] = field(default_factory=dict)
    only: list[str] | None = None

    def write(self, path: Path) -> None:
        """Write it."""
        path.write_text(json.dumps(vars(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read it."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two files that a run is given."""
    group = parser.getgroup("npu_bench")
    group.addoption(_PLAN, type=Path, help="what is timed: JSON, written by python -m harness.bench.npu")
    group.addoption(_OUTCOMES, type=Path, help="where a line of JSON for each benchmark is appended")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what would time nothing, or in two processes at once.

    Raises:
        UsageError: pytest-xdist distributes tests, pytest-benchmark is off, or there is no plan.
    """
    refuse_what_times_nothing(config)
    plan = config.getoption(_PLAN)
    if plan is None or config.getoption(_OUTCOMES) is None:
        msg = f"{_PLAN} or {_OUTCOMES} is missing; start the benchmark with python -m harness.bench.npu"
        raise pytest.UsageError(msg)
    config.stash[PLAN] = Plan.read(plan)


def refuse_what_times_nothing(config: pytest.Config) -> None:
    """Refuse options with which pytest-benchmark runs each function once and says hardly a word.

    Raises:
        UsageError: see above.
    """
    distributed = config.getoption("dist", "no") not in {None, "no"} or config.getoption("numprocesses", None)
    if distributed or hasattr(config, "workerinput"):
        msg = "pytest-xdist is on, which turns benchmarks off; expected a run without -n and --dist"
        raise pytest.UsageError(msg)
    for option in ("benchmark_disable", "benchmark_skip"):
        if config.getoption(option, default=False):
            msg = f"--{option.replace('_', '-')} is given; expected benchmarks to be on"
            raise pytest.UsageError(msg)
    if not config.pluginmanager.hasplugin("benchmark"):
        msg = "pytest-benchmark is not loaded; expected it: pip install pytest-benchmark"
        raise pytest.UsageError(msg)


def append_outcome(config: pytest.Config, outcome: dict[str, object]) -> None:
    """Append a line to the outcomes, at once: what a crash takes along is then only what crashed."""
    with config.getoption(_OUTCOMES).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(outcome) + "\n")
