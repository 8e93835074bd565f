# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The demonstration and the benchmark, as `nox -s demo` and `nox -s bench` call them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_maps import plan, read_placement
from harness.bench import maps as bench
from harness.demo import choose_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.demo", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)


@given(st.integers(1, 1024))
def test_the_chosen_counts_can_be_planned(num_experts: int) -> None:
    ep_size, physical = choose_counts(num_experts)
    assert physical % ep_size == 0
    assert num_experts <= physical
    result = plan(np.ones((1, num_experts)), num_physical_experts=physical, ep_size=ep_size)
    assert result.placement.num_logical_experts == num_experts


def test_the_demo_plans_writes_checks_and_shows(tmp_path: Path) -> None:
    output = tmp_path / "map.json"
    done = demo("--output", output)
    assert done.returncode == 0, done.stderr
    for command in ("plan", "check", "show"):
        assert f"$ expert-maps {command} " in done.stdout
    assert "before" in done.stdout
    assert "after" in done.stdout
    assert read_placement(output).num_layers == 4


def test_the_demo_takes_a_users_load(tmp_path: Path) -> None:
    load = np.random.default_rng(0).integers(1, 1000, size=(3, 2, 64))
    np.savez(tmp_path / "load.npz", first=load)
    done = demo("--load", tmp_path / "load.npz", "--output", tmp_path / "map.json", "--ep-size", 8)
    assert done.returncode == 0, done.stderr
    assert read_placement(tmp_path / "map.json").ep_size == 8


@pytest.mark.parametrize("name", ["absent.npz", "load.txt", "broken.npz"])
def test_the_demo_refuses_what_is_no_load(tmp_path: Path, name: str) -> None:
    (tmp_path / "load.txt").write_text("tokens of every expert")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    done = demo("--load", tmp_path / name, "--output", tmp_path / "map.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "map.json").exists()


@pytest.fixture(scope="module")
def slots() -> NDArray[np.int32]:
    load = np.random.default_rng(1).lognormal(size=(58, 256))
    return plan(load, num_physical_experts=320, ep_size=64).placement.physical_to_logical


def test_the_loops_of_the_benchmark_agree_with_what_is_timed(slots: NDArray[np.int32]) -> None:
    ours = bench.vectorised(slots)
    for mine, loop, today in zip(ours, bench.per_element(slots), bench.per_rank_as_today(slots), strict=True):
        np.testing.assert_array_equal(mine, loop)
        np.testing.assert_array_equal(mine[:1], today)
