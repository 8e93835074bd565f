# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is counted, and that a rank which exports nothing counts nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from expert_maps import LoadError, Placement, generate_placement, overall_balancedness, peak_to_mean
from vllm_ascend_moe.backends.one_plan import OnePlan
from vllm_ascend_moe.core import metric_table as table
from vllm_ascend_moe.core.exposition import open_files
from vllm_ascend_moe.core.gain import MoveRule
from vllm_ascend_moe.core.meter import Meter

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_ascend_moe.core.metric_table import Metric

L, E, P, R = 10, 8, 12, 2


class Files:
    """As `MetricFiles`, in memory."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str | None], float] = {}

    def write(self, metric: Metric, sample: str, value: float, label: str | None = None) -> None:
        assert sample in metric.samples
        assert (label is None) == (metric.label is None)
        self.values[sample, label] = value

    def add(self, metric: Metric, sample: str, amount: float, label: str | None = None) -> None:
        self.write(metric, sample, self.values.get((sample, label), 0.0) + amount, label)

    def __getitem__(self, name: str) -> float:
        return self.values.get((f"expert_maps_{name}", None), 0.0)

    def by_label(self, name: str) -> dict[str | None, float]:
        return {
            label: value for (found, label), value in self.values.items() if found == f"expert_maps_{name}"
        }


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def meter(files: Files) -> Meter:
    return Meter(files)  # type: ignore[arg-type] # as much of it as is used


def ring() -> Placement:
    return generate_placement("ring", num_experts=E, ep_size=R, num_redundant_experts=P - E, num_layers=L)


def drawn() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(1, 100, (L, E))


def test_balance_is_what_the_library_says(meter: Meter, files: Files) -> None:
    meter.placement, load = ring(), drawn()
    meter.measure_experts(load)
    assert files["balancedness"] == pytest.approx(overall_balancedness(ring(), load))
    groups = files.by_label("peak_to_mean")
    # Ten layers in eight groups of neighbours.
    assert list(groups) == ["0-1", "2-3", "4", "5", "6", "7", "8", "9"]
    assert groups["4"] == pytest.approx(peak_to_mean(ring(), load)[4])
    alone = ring().global_expert_map()  # of the two first layers, by a plain loop
    ranks = np.zeros((2, R))
    for layer in range(2):
        for expert in range(E):
            held = [rank for rank in range(R) for slot in [alone[layer, rank, expert]] if slot >= 0]
            for rank in held:
                ranks[layer, rank] += load[layer, expert] / len(held)
    assert groups["0-1"] == pytest.approx(ranks.max(axis=1).sum() / ranks.mean(axis=1).sum())


def test_layers_of_a_later_stage_keep_their_numbers(meter: Meter, files: Files) -> None:
    meter.first_layer = 30
    meter.measure_ranks(np.ones((2, R)))
    assert files.by_label("peak_to_mean") == {"30": 1.0, "31": 1.0}


def test_without_tokens_or_a_placement_nothing_is_measured(meter: Meter, files: Files) -> None:
    meter.measure_experts(drawn())
    meter.placement = ring()
    meter.measure_experts(np.zeros((L, E)))
    assert not files.values
    with pytest.raises(LoadError):
        overall_balancedness(ring(), drawn()[:, :4])
    meter.measure_experts(drawn()[:, :4])
    assert not files.values


def test_moved_slots_are_told_by_where_they_came_from(meter: Meter, files: Files) -> None:
    meter.slot_bytes = 1000.0
    rows = np.array([[0, 1, 2, 3]])
    before = Placement(rows, 2, num_logical_experts=4)
    # Two slots of a rank changed places, and one expert of each rank went to the other.
    meter.moved(before, Placement(np.array([[1, 2, 0, 3]]), 2, num_logical_experts=4))
    assert files.by_label("moved_slots_total") == {"other_rank": 2, "same_rank": 1}
    assert files.by_label("moved_bytes_total") == {"other_rank": 2000, "same_rank": 1000}
    meter.begin_move()
    meter.end_move(before)
    assert files["rearrangements_total"] == files["moving_seconds_count"] == 1
    assert meter.placement is before


class Planner:
    def __init__(self, rows: torch.Tensor | None) -> None:
        self.rows = rows

    def rebalance_experts(self, *_: object) -> torch.Tensor:
        if self.rows is None:
            msg = "no plan"
            raise RuntimeError(msg)
        return self.rows


@pytest.mark.parametrize(
    ("rows", "rule", "reason"),
    [
        ([[0, 1, 2, 3]], MoveRule(), "unchanged"),
        ([[0, 2, 1, 3]], MoveRule(slot_tokens=1e9), "cost"),
        ([[0, 2, 1, 3]], MoveRule(min_gain=0.9), "min_gain"),
        (None, MoveRule(), "failed"),
        ([[0, 2, 1, 3]], MoveRule(), None),
    ],
)
def test_every_plan_moves_something_or_is_told_why_not(
    rows: list[list[int]] | None, rule: MoveRule, reason: str | None, meter: Meter, files: Files
) -> None:
    old = torch.tensor([[0, 1, 2, 3]])
    plan = OnePlan(Planner(None if rows is None else torch.tensor(rows)), rule, None, meter)
    plan.rebalance_experts(torch.tensor([[9, 9, 1, 1]]), 4, 1, 1, 2, old)
    assert files["planning_seconds_count"] == 1
    skipped = files.by_label("rearrangements_skipped_total")
    assert skipped == ({} if reason is None else {reason: 1})
    assert plan.moves == (reason is None)
    if reason != "failed":
        assert files["balancedness"] == pytest.approx(10 / 18)  # as it is before the move
    # Those that take the plan of another rank count nothing.
    assert set(skipped) <= set(table.SKIPPED)


def test_where_nothing_is_exported_nothing_is_counted() -> None:
    meter = Meter()
    assert not meter.is_on
    meter.placement = ring()
    meter.measure_experts(drawn())
    meter.moved(ring(), ring())
    meter.end_move(None)
    meter.wrote(3)
    meter.skipped("cost")


def test_serving_goes_on_where_metrics_cannot_be_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"model_name": "tiny", "stage": "0"}
    for folder in (None, str(tmp_path / "of_another_machine")):
        caplog.clear()
        assert open_files(folder, labels) is None
        assert "no metrics are exported" in caplog.text


def test_one_rank_of_a_stage_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_ascend_moe.core import session as sessions
    from vllm_ascend_moe.core.settings import Settings

    opened: list[object] = []
    monkeypatch.setattr(sessions, "open_files", lambda folder, labels: opened.append((folder, labels)))

    def start(ep_rank: int, stage: int, *, metrics: bool = True) -> None:
        session: Any = SimpleNamespace(
            settings=Settings(metrics=metrics),
            ranks=SimpleNamespace(ep_rank=ep_rank, stage_rank=stage),
            config=SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny")),
            _metrics_folder="there",
        )
        sessions.Session.start_metrics(session)

    start(1, 0)
    start(0, 0, metrics=False)
    assert not opened
    start(0, 0)
    start(0, 1)
    assert opened == [("there", {"model_name": "tiny", "stage": stage}) for stage in ("0", "1")]
