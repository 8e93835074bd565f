# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`--plot`: drawn where matplotlib is, and one clear error where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertLoad

COUNTS = (np.random.default_rng(5).lognormal(sigma=1.2, size=(8, 2, 8)) * 100).astype(np.int64)
SIMULATE = ("simulate", "load.npy", "--ep-size", 4, "--redundant", "0,4", "--workers", 1)
COMMANDS = (
    ("plan", "load.npy", "--ep-size", 4, "--redundant", 4),
    ("evaluate", "map.json", "load.npy"),
    ("compare", "load.npy", "--ep-size", 4, "--redundant", "0,4"),
    SIMULATE,
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("load.npy", COUNTS)
    assert run("plan", "load.npy", "--ep-size", 4, "--redundant", 4, "--output", "map.json").exit_code == 0


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_matplotlib_nothing_is_written(
    command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert_one_line_error(
        run(*command, "--plot", "x.png"), "matplotlib is not installed", "pip install matplotlib"
    )
    assert_one_line_error(run(*command, "--plot", "x.pdf"), "--plot is 'x.pdf'", ".png or .svg")
    assert_one_line_error(run(*command, "--plot", "-"), "--plot is '-'")
    assert sorted(path.name for path in Path().iterdir()) == ["load.npy", "map.json"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_pictures_are_written(command: tuple[object, ...]) -> None:
    pytest.importorskip("matplotlib")
    for ending in ("png", "svg"):
        result = run(*command, "--plot", f"x.{ending}")
        assert result.exit_code == 0, result.output
        assert f"picture written: x.{ending}" in result.stderr
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in Path("x.svg").read_text(encoding="utf-8")


def test_what_is_drawn_is_what_was_found() -> None:
    pytest.importorskip("matplotlib")
    from expert_maps.plots_of_runs import plot_runs
    from expert_maps.simulation import simulate, sweep

    runs = simulate(ExpertLoad(COUNTS), sweep(ep_sizes=[4], redundant=[0, 3, 4], intervals=[2]))
    lines = {str(line.get_label()): line.get_ydata() for line in plot_runs(runs).axes[0].lines}
    assert len(lines) == 3
    for found in (each for each in runs if each.reason is None):
        label = f"{found.setting.name}: {found.over_steps:.3f}"
        assert np.asarray(lines[label]) == pytest.approx(found.balancedness)


def test_policies_are_drawn_against_redundancy_and_planning_time() -> None:
    pytest.importorskip("matplotlib")
    from expert_maps import compare
    from expert_maps.plots_of_runs import plot_comparison

    rows = compare(COUNTS, ep_size=4, policies=["balanced", "deepseek"], redundant=[0, 4])
    left, right = plot_comparison(rows).axes
    for policy, line, points in zip(("balanced", "deepseek"), left.lines, right.lines, strict=False):
        own = [row for row in rows if row.policy == policy]
        assert line.get_xydata().tolist() == [[row.num_redundant_experts, row.over_steps] for row in own]
        assert points.get_xydata().tolist() == [[max(row.seconds or 0, 1e-4), row.over_steps] for row in own]
