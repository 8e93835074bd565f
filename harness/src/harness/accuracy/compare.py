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
from harness.accuracy.table import field_table
from harness.accuracy.verdict import MARGIN_POINTS, criteria_table, judge

if TYPE_CHECKING:
    from pathlib import Path

    from harness.accuracy.records import Record
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
    folder = options.floor or baseline.folder.parent / REPEAT
    if options.floor is None and not (folder / SUMMARY).exists():
        return None
    record = read_record(folder)
    if options.floor is None and (
        record.summary.status != "complete"
        or [one.doc_hash for one in record.questions] != [one.doc_hash for one in baseline.questions]
    ):
        return None
    return record


def render(comparison: Comparison) -> str:
    """Return both tables, the criteria, what differs besides, and the verdict as the last line."""
    verdict = comparison.verdict
    parts = []
    for record in (comparison.baseline, comparison.arm):
        summary = record.summary
        parts.append(f"{summary.model}, {summary.arm} ({summary.role}, {summary.dtype})\n")
        parts.append(field_table(summary))
    parts.append(criteria_table(verdict))
    seen, (low, high) = verdict.pairs.outcomes, verdict.interval
    lines = [
        (
            f"difference {100 * seen.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} (Tango); "
            f"{100 * seen.discordance:.2f} % discordant"
        ),
        *_lost(comparison),
        *(f"note: {note}" for note in notes(comparison)),
        verdict.line,
    ]
    return "\n".join([*parts, "\n".join(lines)])


def _lost(comparison: Comparison) -> list[str]:
    lost = comparison.verdict.pairs.lost
    if not lost:
        return []
    rest = f" and {len(lost) - _SHOWN_LOST} more" if len(lost) > _SHOWN_LOST else ""
    return [f"lost questions: {', '.join(map(str, lost[:_SHOWN_LOST]))}{rest}"]


def notes(comparison: Comparison) -> list[str]:
    """Return what else differs between the runs, and what makes them hard to repeat."""
    found = differences(comparison.baseline.summary, comparison.arm.summary)
    rescored = comparison.verdict.pairs.rescored
    if rescored:
        found.append(
            f"{rescored} questions have the same text and another outcome: they were scored differently"
        )
    return found


def as_json(comparison: Comparison) -> dict[str, object]:
    """Return the same as an object of JSON."""
    verdict = comparison.verdict
    seen = verdict.pairs.outcomes
    arms = {
        name: {
            "folder": str(record.folder),
            "arm": record.summary.arm,
            "role": record.summary.role,
            "value": record.summary.value,
            "task": {
                field: getattr(record.summary.task, field)
                for field in ("dataset", "version", "metric", "mode")
            },
            "model": record.summary.model,
            "digest": record.summary.placement.digest,
        }
        for name, record in (("baseline", comparison.baseline), ("arm", comparison.arm))
    }
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
        **arms,
    }
