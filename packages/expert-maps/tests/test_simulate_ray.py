# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`simulate --ray`: the same runs on Ray; a stand-in for it where it is not installed."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertLoad
from expert_maps.simulation import Costs, simulate, sweep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNTS = (np.random.default_rng(7).lognormal(sigma=1.2, size=(6, 2, 8)) * 100).astype(np.int64)
SETTINGS = sweep(ep_sizes=[4], redundant=[0, 3, 4], intervals=[2])
COSTS = Costs(1000, 2.0)


class FakeRay(SimpleNamespace):
    """Runs tasks when they are got, and the last that was submitted ends first."""

    def __init__(self) -> None:
        super().__init__(calls=[], is_up=False)

    def is_initialized(self) -> bool:
        return bool(self.is_up)

    def init(self, **options: object) -> None:
        self.is_up = True
        self.calls.append(("init", options))

    def shutdown(self) -> None:
        self.is_up = False
        self.calls.append(("shutdown", {}))

    def put(self, value: object) -> list[object]:
        self.calls.append(("put", {}))
        return [value]

    def remote(self, **options: object) -> Callable[[Callable[..., object]], object]:
        assert options == {"num_cpus": 1}
        return lambda function: SimpleNamespace(
            remote=lambda stored, *rest: lambda: function(stored[0], *rest)
        )

    def wait(self, tasks: list[Any]) -> tuple[list[Any], list[Any]]:
        return tasks[-1:], tasks[:-1]

    def get(self, tasks: list[Callable[[], object]]) -> list[object]:
        return [task() for task in tasks]


def numbers(runs: list[Any]) -> list[object]:
    return [
        (each.setting, each.hottest.tolist(), each.stall.tolist(), each.moved_bytes, each.reason)
        for each in runs
    ]


def test_runs_are_those_of_one_process_and_are_kept_as_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = numbers(simulate(COUNTS, SETTINGS, costs=COSTS))
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kept, told = tmp_path / "runs.jsonl", []
    options: dict[str, Any] = {"costs": COSTS, "resume": kept, "on_ray": True, "workers": 3}
    assert numbers(simulate(COUNTS, SETTINGS, **options, progress=lambda *each: told.append(each))) == alone
    assert told == [(done, 4) for done in range(1, 5)]
    assert [name for name, _ in ray.calls] == ["init", "put", "shutdown"]
    assert ray.calls[0][1]["num_cpus"] == 3
    assert numbers(simulate(COUNTS, SETTINGS, **options)) == alone  # all of them from the file
    assert len(ray.calls) == 3
    # One that is there already is neither started nor ended; of a cluster the CPUs are its own.
    ray.calls.clear()
    ray.is_up = True
    assert numbers(simulate(COUNTS, SETTINGS, costs=COSTS, on_ray=True)) == alone
    assert [name for name, _ in ray.calls] == ["put"]
    ray.is_up = False
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    simulate(COUNTS, SETTINGS[:1], costs=COSTS, on_ray=True)
    assert "num_cpus" not in ray.calls[1][1]


def test_ray_is_ended_when_a_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray, "get", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate(COUNTS, SETTINGS, on_ray=True)
    assert ray.calls[-1][0] == "shutdown"


def test_without_ray_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    np.save("load.npy", COUNTS)
    command = ("simulate", "load.npy", "--ep-size", 4, "--redundant", 0, "--ray", "--output", "runs.json")
    assert_one_line_error(run(*command), "ray is not installed", "pip install 'expert-maps[ray]'")
    assert [path.name for path in tmp_path.iterdir()] == ["load.npy"]


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed; above a stand-in runs"
)
@pytest.mark.filterwarnings("default")  # Ray's own
def test_on_a_local_ray() -> None:
    alone = simulate(ExpertLoad(COUNTS), SETTINGS, costs=COSTS)
    assert numbers(simulate(COUNTS, SETTINGS, costs=COSTS, on_ray=True, workers=2)) == numbers(alone)
