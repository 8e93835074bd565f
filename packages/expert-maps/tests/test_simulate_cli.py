# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps simulate`."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertLoad
from expert_maps.simulation import Costs, Setting, replay

COUNTS = (np.random.default_rng(5).lognormal(sigma=1.2, size=(8, 2, 8)) * 100).astype(np.int64)
OPTIONS = ("--expert-bytes", 1000, "--bandwidth", 2, "--workers", 1)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("load.npy", COUNTS)


def test_a_sweep_is_printed_and_written_as_it_was_run() -> None:
    sweep = ("simulate", "load.npy", "--ep-size", 4, "--redundant", "0,4", "--intervals", "0,2", *OPTIONS)
    result = run(*sweep, "--output", "runs.json", "--resume", "runs.jsonl")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == 5
    assert "written: runs.json" in result.stdout
    told = json.loads(run(*sweep, "--json", "--resume", "runs.jsonl").stdout)
    assert told["runs"] == json.loads(Path("runs.json").read_text())["runs"]
    assert len(Path("runs.jsonl").read_text().splitlines()) == 5
    row = next(each for each in told["runs"] if (each["num_redundant_experts"], each["interval"]) == (4, 2))
    again = replay(ExpertLoad(COUNTS), Setting("balanced", 4, 4, 2), costs=Costs(1000, 2.0))
    assert row["hottest"] == again.hottest.tolist()
    assert row["stall_seconds"] == again.stall.sum()
    assert f"{again.over_steps:.4f}" in result.stdout


def test_what_is_taken_is_named() -> None:
    result = run("simulate", "load.npy", "--ep-size", 4, "--redundant", 0, "--workers", 1)
    assert "--expert-bytes 44040192 taken" in result.stderr
    assert "--bandwidth 25 GB/s taken" in result.stderr


def test_parquet_needs_pyarrow() -> None:
    result = run(
        "simulate", "load.npy", "--ep-size", 4, "--redundant", 0, *OPTIONS, "--output", "runs.parquet"
    )
    if importlib.util.find_spec("pyarrow") is None:
        assert_one_line_error(result, "pyarrow is not installed", "pip install pyarrow")
        assert not Path("runs.parquet").exists()
        return
    parquet = importlib.import_module("pyarrow.parquet")
    rows = parquet.read_table("runs.parquet").to_pylist()
    command = ("simulate", "load.npy", "--ep-size", 4, "--redundant", 0, *OPTIONS, "--json")
    told = json.loads(run(*command).stdout)["runs"]
    assert [row["policy"] for row in rows] == ["off", "balanced"]
    for row, other in zip(rows, told, strict=True):
        # Planner seconds are measured anew.
        assert all(row[name] == other[name] for name in row if name != "planner_seconds")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--redundant", ","), "--redundant has no value"),
        (("--redundant", "x"), "--redundant is 'x'"),
        (
            ("--redundant", 3),
            "nothing to simulate: --redundant is 3: 8 + 3 = 11 slots do not divide by --ep-size 4",
        ),
        (("--redundant", 0, "--policies", "best"), "--policies is 'best'; expected one of off, balanced"),
        (("--redundant", 0, "--thresholds", "2"), "--thresholds is 2.0; expected a number from 0 to 1"),
        (("--redundant", 0, "--thresholds", "x"), "--thresholds is 'x'"),
        (("--redundant", 0, "--max-moves", "few"), "--max-moves is 'few'"),
        (("--redundant", 0, "--bandwidth", 0), "--bandwidth is 0.0; expected a number of GB/s above 0"),
        (("--redundant", 0, "--output", "runs.csv"), "ends in .json or .parquet"),
        (("--redundant", 0, "--resume", "load.npy"), "is the file that is read as LOAD"),
    ],
)
def test_what_is_refused(options: tuple[object, ...], said: str) -> None:
    assert_one_line_error(run("simulate", "load.npy", "--ep-size", 4, *options), said)
    assert sorted(path.name for path in Path().iterdir()) == ["load.npy"]
