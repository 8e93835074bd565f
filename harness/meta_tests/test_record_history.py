# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Steps in made-up histories: found where there is one, and seldom where there is none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from forking import run_module

from harness.record import history
from harness.record.__main__ import metrics_of, series
from harness.record.schema import DeviceRecord, Provenance, RunRecord
from harness.record.steps import ALPHA, LEAST, find_steps

if TYPE_CHECKING:
    from pathlib import Path


def noise(kind: str, draw: np.random.Generator, count: int) -> np.ndarray:
    return {
        "normal": draw.normal(10, 1, count),
        "outliers": 10 + draw.standard_t(2, count),
        "ties": draw.integers(9, 12, count).astype(float),
    }[kind]


@pytest.mark.parametrize("kind", ["normal", "outliers", "ties"])
def test_noise_shows_a_step_as_rarely_as_is_said(kind: str) -> None:
    draw, cases = np.random.default_rng(3), 300
    wrong = sum(bool(find_steps(list(noise(kind, draw, 24)))) for _ in range(cases))
    # Three standard deviations above what is said: a fair count lies above it about once in 700.
    assert wrong <= cases * ALPHA + 3 * math.sqrt(cases * ALPHA * (1 - ALPHA))


def test_a_step_is_found_where_it_is() -> None:
    draw, found = np.random.default_rng(4), []
    for _ in range(40):
        values = draw.normal(10, 1, 24)
        values[14:] += 4
        found.append(any(abs(step.place - 14) <= 1 for step in find_steps(list(values))))
    assert sum(found) >= 38


def test_two_steps_have_their_medians() -> None:
    values = [level + place % 3 / 100 for level in (1.0, 2.0, 1.5) for place in range(10)]
    steps = find_steps(values)
    assert [step.place for step in steps] == [10, 20]
    assert [(round(step.before, 2), round(step.after, 2)) for step in steps] == [(1.01, 2.01), (2.01, 1.51)]
    assert all(0 < step.p <= ALPHA for step in steps)


def test_what_shows_no_step() -> None:
    assert find_steps([]) == []
    assert find_steps([1.0] * 40) == []
    assert find_steps([1.0] * 4 + [9.0] * 5) == []  # one fewer than LEAST
    assert len(find_steps([1.0] * (LEAST // 2) + [9.0] * (LEAST // 2))) == 1
    # One run that was disturbed is no step.
    assert find_steps([1.0, 1.1] * 6 + [50.0] + [1.0, 1.1] * 6) == []


def written(path: Path) -> Path:
    for place in range(24):
        device = DeviceRecord(kind="cpu", name="one" if place % 2 else "other")
        # Only one of the machines became slower.
        slow = 2.0 if place > 12 and place % 2 else 1.0
        history.append(
            path,
            RunRecord(
                kind="performance",
                name="eplb",
                provenance=Provenance(
                    device=device, commit=f"{place:02}" * 20, date=f"2026-01-{place + 1:02}T00:00:00+00:00"
                ),
                quality={"answer": "faster", "value": 99.0, "gate": True},
                performance={
                    "closed": {"arm": {"ms": [slow, slow + place / 1000, slow]}},
                    "rows": [{"benchmark": "b", "ms": 3}],
                },
            ),
        )
    return path


def test_runs_of_one_machine_are_compared(tmp_path: Path) -> None:
    records = history.read(written(tmp_path / "r.jsonl"))
    assert metrics_of(records[0]) == {"value": 99.0, "closed.arm.ms": 1.0, "rows.b.ms": 3.0}
    found = {key[3]: [value for _, value in runs] for key, runs in series(records, "closed.arm.ms").items()}
    assert [step.place for step in find_steps(found["one"])] == [6]
    assert find_steps(found["other"]) == []


def test_the_command(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl")
    done = run_module("harness.record", str(path), "--metric", "closed.arm.ms", cwd=tmp_path, seconds=120)
    assert done.returncode == 0, done.stderr
    # A table a machine: the step stands beside its run, and its absence below.
    assert done.stdout.count("1.00 → 2.00, +100.0 % (p = ") == 1
    (line,) = (line for line in done.stdout.splitlines() if "→" in line)
    assert "2026-01-14" in line
    assert done.stdout.count("no step; noise alone shows one in at most 1 %") == 1
    done = run_module("harness.record", str(path), cwd=tmp_path, seconds=120)
    assert done.stdout.splitlines() == ["closed.arm.ms", "rows.b.ms", "value"]
    for words, error in (
        ((str(path), "--metric", "ms"), "metric is 'ms'; expected one that is listed"),
        ((str(path), "--name", "x"), "name is 'x'; expected that of a run"),
        ((str(tmp_path / "no"),), "no such file"),
    ):
        done = run_module("harness.record", *words, cwd=tmp_path, seconds=120)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert error.lower() in done.stderr.lower()
