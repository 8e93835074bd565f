# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Judge two records and say so, as text or as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.accuracy.limits import limits_for
from harness.accuracy.records import read_record
from harness.accuracy.table import field_table
from harness.accuracy.verdict import MARGIN_POINTS, criteria_table, judge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.accuracy.records import Record
    from harness.accuracy.schema import Summary
    from harness.accuracy.verdict import Verdict

_CONFIG = "--additional-config"
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
    """

    margin: float = MARGIN_POINTS
    largest: float | None = None
    mean: float | None = None
    identical: float | None = None
    repeat: bool = False


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
    verdict = judge(baseline, arm, margin=options.margin, limits=limits, repeat=options.repeat)
    return Comparison(baseline, arm, verdict)


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
    before, after = comparison.baseline.summary, comparison.arm.summary
    versions = {name: (old, getattr(after.versions, name, None)) for name, old in before.versions}
    found = [f"{name} is {old} and {new}" for name, (old, new) in versions.items() if old != new]
    if before.role != "baseline":
        found.append(f"{before.arm} is no baseline: its role is {before.role}")
    if before.git.commit != after.git.commit:
        found.append(f"commit is {before.git.commit} and {after.git.commit}")
    found += _serving(before, after)
    rescored = comparison.verdict.pairs.rescored
    if rescored:
        found.append(
            f"{rescored} questions have the same text and another outcome: they were scored differently"
        )
    dirty = [one.arm for one in (before, after) if one.git.dirty]
    if dirty:
        found.append(f"uncommitted changes: {', '.join(dirty)}")
    return found


def _serving(before: Summary, after: Summary) -> list[str]:
    """Return what differs in how the arms were served, but for the additional config, in which arms do differ."""
    found = []
    arguments = [Counter(_without_config(one.server.arguments)) for one in (before, after)]
    sides = [sorted((arguments[i] - arguments[1 - i]).elements()) for i in range(2)]
    if any(sides):
        found.append(f"arguments differ: {' '.join(sides[0]) or 'none'} and {' '.join(sides[1]) or 'none'}")
    variables = [one.server.environment for one in (before, after)]
    names = [name for name in variables[0] | variables[1] if variables[0].get(name) != variables[1].get(name)]
    if names:
        found.append(f"variables differ: {', '.join(sorted(names))}")
    return found


def _without_config(arguments: Sequence[str]) -> list[str]:
    skipped = {place + step for place, word in enumerate(arguments) if word == _CONFIG for step in (0, 1)}
    return [word for place, word in enumerate(arguments) if place not in skipped]


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
