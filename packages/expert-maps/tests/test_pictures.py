# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`--plot`: drawn where matplotlib is, and one clear error where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertLoad, plan
from expert_maps.metrics import rank_load

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
    from expert_maps.pictures import plot_placement, plot_runs
    from expert_maps.simulation import simulate, sweep

    trace = ExpertLoad(COUNTS)
    placement = plan(trace, ep_size=4, num_redundant_experts=4).placement
    before = np.asarray([[4.0, 0, 0, 0], [1, 1, 1, 1]])
    figure = plot_placement(placement, trace, before, ("one", "two"))
    maps = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images][:2]
    after = rank_load(placement, trace)
    assert maps[0].tolist() == before.tolist()
    assert maps[1] == pytest.approx(after / after.mean(axis=1, keepdims=True))
    runs = simulate(trace, sweep(ep_sizes=[4], redundant=[0, 3, 4], intervals=[2]))
    lines = {str(line.get_label()): line.get_ydata() for line in plot_runs(runs).axes[0].lines}
    assert len(lines) == 3
    for found in (each for each in runs if each.reason is None):
        label = f"{found.setting.name}: {found.over_steps:.3f}"
        assert np.asarray(lines[label]) == pytest.approx(found.balancedness)
