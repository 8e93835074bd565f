# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Judge two records and say so, as text or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.accuracy.config import REPEAT
from harness.accuracy.kind import differences
from harness.accuracy.limits import limits_for
from harness.accuracy.records import SUMMARY, read_record
from harness.accuracy.verdict import MARGIN_POINTS, judge
from harness.record.tables import NONE, Sheet, markdown, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from harness.accuracy.records import Record
    from harness.accuracy.schema import Summary
    from harness.accuracy.verdict import Verdict

# The first of them are enough to look into what happened.
_SHOWN_LOST = 10


@dataclass(frozen=True)
class Options:
    """How to judge.

    Attributes:
        margin: largest loss that is accepted, in points.
        largest: limit of |Δ log-probability|; the dtype's where it is None.
        mean: limit of its mean, likewise.
        identical: share of identical texts, likewise.
        repeat: the second record is the baseline once more.
        floor: folder of the baseline once more, beside which 16 bits are judged; None for `repeat` beside the baseline.
        waived: names of criteria that need not be measured.
    """

    margin: float = MARGIN_POINTS
    largest: float | None = None
    mean: float | None = None
    identical: float | None = None
    repeat: bool = False
    floor: Path | None = None
    waived: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two records and what was found."""

    baseline: Record
    arm: Record
    verdict: Verdict


def compare(first: Path, second: Path, options: Options | None = None) -> Comparison:
    """Judge the record in the second folder against that in the first.

    Raises:
        ValueError: the second is to be a repeat of the first, and is the same folder.
        RecordError: a folder holds no complete record, or they cannot be compared.
        FormatError: a file is absent or not JSON.
        ValueError: an option is out of range.
    """
    if options is not None and options.repeat and first.resolve() == second.resolve():
        msg = f"a repeat of {first} is {second}; expected the record of another run"
        raise ValueError(msg)
    return compare_records(read_record(first), read_record(second), options)


def compare_records(baseline: Record, arm: Record, options: Options | None = None) -> Comparison:
    """Judge a record against another; errors as `compare`."""
    options = options or Options()
    limits = limits_for(
        baseline.summary.dtype, largest=options.largest, mean=options.mean, identical=options.identical
    )
    verdict = judge(
        baseline,
        arm,
        margin=options.margin,
        limits=limits,
        floor=_floor(baseline, options) if limits.needs_floor else None,
        waived=options.waived,
        repeat=options.repeat,
    )
    return Comparison(baseline, arm, verdict)


def _floor(baseline: Record, options: Options) -> Record | None:
    """Return the repeat of the baseline; None where there is no complete one of the same texts.

    Raises:
        RecordError: the folder that was named holds no record.
    """
    if options.floor is not None:
        return read_record(options.floor)
    folder = baseline.folder.parent / REPEAT
    if not (folder / SUMMARY).exists():
        return None
    record = read_record(folder)
    hashes = [[one.doc_hash for one in each.questions] for each in (record, baseline)]
    return record if record.summary.status == "complete" and hashes[0] == hashes[1] else None


def field_table(summary: Summary) -> str:
    """Return an arm as evaluation tools print it; a run that is not complete has no value."""
    task = summary.task
    value = NONE if summary.value is None else f"{summary.value:.2f}"
    columns = ("dataset", "version", "metric", "mode", "model")
    return markdown(columns, [[task.dataset, task.version, task.metric, task.mode, value]])


def criteria_sheet(comparison: Comparison) -> Sheet:
    """Return the verdict of an arm with its criteria, in their order, and what differs besides."""
    verdict = comparison.verdict
    rows = [[one.name, one.value, one.limit, one.outcome] for one in verdict.criteria]
    seen = [f"note: {one_line(note)}" for note in notes(comparison)]
    title, columns = one_line(comparison.arm.summary.arm), ["criterion", "value", "limit", "outcome"]
    return Sheet(title, one_line(verdict.line), columns, rows, seen, right=None)


def render(comparison: Comparison) -> str:
    """Return both tables, the criteria, what differs besides, and the verdict as the last line."""
    verdict, sheet = comparison.verdict, criteria_sheet(comparison)
    parts = []
    for summary in (comparison.baseline.summary, comparison.arm.summary):
        parts += [f"{summary.model}, {summary.arm} ({summary.role}, {summary.dtype})\n", field_table(summary)]
    parts.append(markdown(sheet.columns, sheet.rows))
    seen, (low, high) = verdict.pairs.outcomes, verdict.interval
    parts.append(
        f"difference {100 * seen.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} (Tango); "
        f"{100 * seen.discordance:.2f} % discordant"
    )
    if lost := verdict.pairs.lost:
        rest = f" and {len(lost) - _SHOWN_LOST} more" if len(lost) > _SHOWN_LOST else ""
        parts.append(f"lost questions: {', '.join(map(str, lost[:_SHOWN_LOST]))}{rest}")
    return "\n".join([*parts, *sheet.notes, verdict.line])


def notes(comparison: Comparison) -> list[str]:
    """Return what else differs between the runs, and what makes them hard to repeat."""
    found = differences(comparison.baseline.summary, comparison.arm.summary)
    if rescored := comparison.verdict.pairs.rescored:
        found.append(
            f"{rescored} questions have the same text and another outcome: they were scored differently"
        )
    return found


def as_json(comparison: Comparison) -> dict[str, object]:
    """Return the same as an object of JSON."""
    verdict = comparison.verdict
    seen = verdict.pairs.outcomes
    return {
        "verdict": verdict.answer,
        "line": verdict.line,
        "exit_code": verdict.exit_code,
        "margin_points": verdict.margin,
        "more_questions": verdict.more,
        "questions": seen.questions,
        "lost": seen.losses,
        "gained": seen.gains,
        "lost_questions": list(verdict.pairs.lost),
        "difference_points": 100 * seen.difference,
        "interval_points": list(verdict.interval),
        "loss_limit_points": verdict.loss_limit,
        "identical_texts": verdict.pairs.identical,
        "criteria": [asdict(criterion) for criterion in verdict.criteria],
        "notes": notes(comparison),
        "baseline": _side(comparison.baseline),
        "arm": _side(comparison.arm),
    }


def _side(record: Record) -> dict[str, object]:
    summary = record.summary
    return {
        "folder": str(record.folder),
        **summary.model_dump(include={"arm", "role", "value"}),
        "task": summary.task.model_dump(include={"dataset", "version", "metric", "mode"}),
        "model": summary.model,
        "digest": summary.placement.digest,
    }
