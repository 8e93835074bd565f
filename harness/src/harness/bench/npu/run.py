# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A run: pytest in a process of its own, an outcome for each benchmark, and the baseline it is held against."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.bench.npu import records
from harness.bench.npu.compare import Row, compare, require_same_device
from harness.bench.npu.plugin import PLANNED, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.bench.npu.cases import Selection
    from harness.bench.npu.devices import Device

_BENCHMARKS = Path(__file__).with_name("bench_ops.py")
# What seems slower is timed again: of two times the smaller one is nearer to what the code needs.
_SECOND_LOOKS = 2


class BenchError(Exception):
    """The benchmark cannot run as asked."""


class MissingBaselineError(Exception):
    """There is nothing to compare with, which is no pass."""


@dataclass(frozen=True)
class Run:
    """What is timed, and how.

    Attributes:
        device: what it is timed on.
        selection: which benchmarks.
        pace: changes to the pace.
    """

    device: Device
    selection: Selection
    pace: dict[str, Any]

    def measure(self, only: list[str] | None = None) -> list[dict[str, Any]]:
        """Run pytest, and return an outcome for each benchmark.

        Args:
            only: names, None for all of the run.

        Raises:
            BenchError: pytest ended before the first benchmark.
        """
        with tempfile.TemporaryDirectory(prefix="npu_bench-") as folder:
            plan, outcomes = Path(folder, "plan.json"), Path(folder, "outcomes.jsonl")
            Plan(self.device.kind, dataclasses.asdict(self.selection), self.pace, only).write(plan)
            command = [
                sys.executable,
                "-m",
                "pytest",
                str(_BENCHMARKS),
                "-p",
                "harness.bench.npu.plugin",
                "-q",
            ]
            command += ["--npu-bench-plan", str(plan), "--npu-bench-outcomes", str(outcomes)]
            command += ["--benchmark-quiet", "-p", "no:cacheprovider", "-W", "default", "--disable-warnings"]
            code = subprocess.run(command, check=False).returncode  # noqa: S603 - our own
            lines = records.read_lines(outcomes) if outcomes.exists() else []
        if not lines:
            msg = f"pytest left with code {code} before anything was timed; what it said stands above"
            raise BenchError(msg)
        # A later line of the same name is what came of it.
        found = list({line["benchmark"]: line for line in lines}.values())
        lost = {"status": "lost", "detail": f"no outcome; pytest left with code {code}"}
        return [{**line, **lost} if line["status"] == PLANNED else line for line in found]

    def complete(self, outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the records of outcomes."""
        device = self.device
        named = {"device": device.slug, "device_kind": device.kind, "device_name": device.name}
        return records.complete(outcomes, named)


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with.

    Attributes:
        path: where it is.
        kept: its records.
        threshold: see `compare`.
    """

    path: Path
    kept: list[dict[str, Any]]
    threshold: float

    def rows(self, run: Run, current: list[dict[str, Any]]) -> list[Row]:
        """Compare a run with it."""
        return compare(current, self.kept, threshold=self.threshold, expected=lambda one: _expected(run, one))


def _expected(run: Run, record: Mapping[str, Any]) -> bool:
    """Return whether a run should have a benchmark of the baseline; the copy is part of every run."""
    names = ("op", "model", "tokens", "variant")
    return record["op"] == records.COPY or run.selection.takes(**{name: record[name] for name in names})


def measure_against(run: Run, baseline: Baseline | None) -> list[dict[str, Any]]:
    """Measure, and measure what seems slower than the baseline again."""
    outcomes: Sequence[Mapping[str, Any]] = run.measure()
    for _ in range(_SECOND_LOOKS if baseline is not None else 0):
        assert baseline is not None
        rows = baseline.rows(run, run.complete(outcomes))
        slower = [
            row.name
            for row in rows
            if row.verdict == "regression" and not row.name.startswith(f"{records.COPY}/")
        ]
        if not slower:
            break
        typer.echo(f"{len(slower)} seem slower than the baseline; timing them again")
        outcomes = records.merge(outcomes, run.measure(slower))
    return run.complete(outcomes)


def load_baseline(path: Path, device: Device, threshold: float) -> Baseline:
    """Read a baseline: a file, or a folder of a device.

    Raises:
        MissingBaselineError: there is none.
        FormatError: it is not one.
        OtherDeviceError: it is of another device.
    """
    file = path / records.FILE if path.is_dir() else path
    if not file.exists():
        msg = f"there is no baseline {file}; a run without --compare makes one, and it is kept in the repository"
        raise MissingBaselineError(msg)
    kept = records.read_records(file)
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    require_same_device({"device": device.slug, "omp_num_threads": threads}, kept)
    return Baseline(file, kept, threshold)
