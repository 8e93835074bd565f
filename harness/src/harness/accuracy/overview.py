# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One table of all that was measured of the arms: accuracy, log-probabilities, balance and speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from harness.accuracy import speed
from harness.accuracy.compare import compare_records, criteria_sheet, field_table
from harness.accuracy.config import BASELINE
from harness.accuracy.performance import medians, of_arm
from harness.accuracy.statistics import accuracy_interval
from harness.accuracy.verdict import EXIT_CODES
from harness.record.tables import NONE, Sheet, markdown, number, points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from harness.accuracy.compare import Comparison, Options
    from harness.accuracy.records import Record
    from harness.accuracy.schema import Summary
    from harness.accuracy.settings import RunSettings
    from harness.record.schema import RunRecord


@dataclass(frozen=True)
class ReportedArm:
    """An arm of a report.

    Attributes:
        record: what was recorded.
        comparison: with the baseline; None for the baseline itself, and where either is not complete.
        options: how it was judged, or would have been.
        timed: the record of its speed; None where that was not measured.
    """

    record: Record
    comparison: Comparison | None
    options: Options
    timed: RunRecord | None = None

    @property
    def summary(self) -> Summary:
        """Of the record."""
        return self.record.summary

    @property
    def name(self) -> str:
        """Of the arm."""
        return self.summary.arm

    @property
    def interval(self) -> tuple[float, float] | None:
        """Exact 95 % interval of the accuracy, in percent; None without a value."""
        if self.summary.value is None:
            return None
        low, high = accuracy_interval(self.summary.num_correct, self.summary.num_questions)
        return 100 * low, 100 * high

    @property
    def rank_load(self) -> NDArray[np.float64] | None:
        """Load of the ranks over the mean of their layer, float64 [L, R]; None where it was not recorded."""
        if not self.summary.load.rank_load:
            return None
        loads = np.array(self.summary.load.rank_load, dtype=np.float64)
        mean = loads.mean(axis=1, keepdims=True)
        return np.divide(loads, mean, out=np.ones_like(loads), where=mean > 0)


def speed_code(arm: ReportedArm) -> int:
    """Return the exit code of an arm's speed, where it decides."""
    answer = "undecided" if arm.timed is None else str(arm.timed.quality["answer"])
    return {"slower": EXIT_CODES["worse"], "undecided": EXIT_CODES["undecided"]}.get(answer, 0)


def overview(arms: Sequence[ReportedArm]) -> list[Sheet]:
    """Return the table, and one of the times of each stream where speed was measured."""
    rows = []
    for arm in arms:
        summary, comparison, timed = arm.summary, arm.comparison, arm.timed
        pairs = None if comparison is None else comparison.verdict.pairs
        found = None if pairs is None else pairs.differences
        balance, streams = summary.load.balancedness, {} if timed is None else timed.performance
        ratios = [f"{name} {_interval(stream, stream['decides'])}" for name, stream in streams.items()]
        rows.append(
            [
                summary.arm,
                NONE if summary.value is None else points(summary.value),
                NONE if pairs is None else points(100 * pairs.outcomes.difference, signed=True),
                NONE if found is None else f"{found.largest:.1e}",
                NONE if balance is None else f"{balance:.4f}",
                "; ".join(ratios) or NONE,
                summary.role if comparison is None else comparison.verdict.answer,
                NONE if timed is None else str(timed.quality["answer"]),
            ]
        )
    columns = ["arm", "accuracy, %", "difference, points", "largest Δ log-probability", "balancedness"]
    columns += ["time over the baseline's", "accuracy is", "speed is"]
    return [Sheet("All that was measured", "", columns, rows), *_times(arms)]


def _interval(stream: Mapping[str, Any], metric: str) -> str:
    ratio = stream["ratios"].get(metric)
    return NONE if ratio is None else f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def _times(arms: Sequence[ReportedArm]) -> list[Sheet]:
    rows, rounds = [], set()
    for arm in arms:
        for name, stream in () if arm.timed is None else arm.timed.performance.items():
            own, other = medians(stream, "arm"), medians(stream, "baseline")
            answer = ": ".join(str(stream[key]) for key in ("answer", "why") if stream[key])
            for metric, title in speed.METRICS.items():
                rounds.add(len(stream["arm"].get(metric, ())))
                figures = [number(other.get(metric)), number(own.get(metric)), _interval(stream, metric)]
                decided = answer if metric == stream["decides"] else ""
                rows.append([arm.summary.arm, name, title, *figures, decided])
    if not rows:
        return []
    columns = ["arm", "stream", "median of the rounds", "baseline", "arm"]
    columns += ["time over the baseline's", "speed is"]
    about = (
        f"Each stream in {', '.join(map(str, sorted(rounds)))} rounds, arm and baseline in turn, by vLLM's own client. Below 1 "
        f"the arm is faster; intervals are of {100 * speed.CONFIDENCE:g} % (bootstrap over rounds)."
    )
    return [Sheet("Speed", about, columns, rows)]


def print_results(
    settings: RunSettings, records: dict[str, Record], baseline: Record | None, options: Options
) -> int:
    """Print a table an arm, the verdicts and one table of all; return the exit code, that of the worst verdict."""
    codes, arms = [0], []
    for name, record in records.items():
        one = record.summary
        typer.echo(f"\n{one.model}, {name} ({one.role}, {one.dtype})\n\n{field_table(one)}", nl=False)
    for name, record in records.items():
        comparison = None
        if name != BASELINE and baseline is None:
            typer.echo(f"\n{name}: not judged, there is no complete record of the baseline")
            codes.append(EXIT_CODES["undecided"])
        elif name != BASELINE:
            assert baseline is not None
            comparison = compare_records(baseline, record, options)
            sheet = criteria_sheet(comparison)
            lines = [markdown(sheet.columns, sheet.rows), *sheet.notes, f"{name}: {sheet.about}"]
            typer.echo("\n".join([f"\n{name} beside the baseline\n", *lines]))
            codes.append(comparison.verdict.exit_code)
        timed = of_arm(settings.folder, name, record.summary.started)
        arms.append(ReportedArm(record, comparison, options, timed))
    for sheet in overview(arms):
        typer.echo(f"\n{sheet.body}")
    if settings.performance is not None and settings.performance.gate:
        codes += [speed_code(one) for one in arms if one.summary.role == "eplb"]
    # Worse outweighs undecided.
    return EXIT_CODES["worse"] if EXIT_CODES["worse"] in codes else max(codes)
