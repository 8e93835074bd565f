# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""All arms of a model on one page: accuracy, agreement, log-probabilities, load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_maps.files import describe
from harness.accuracy.compare import Options, compare_records, criteria_sheet, field_table
from harness.accuracy.limits import LIMITS, limits_for
from harness.accuracy.overview import ReportedArm, overview
from harness.accuracy.performance import of_arm
from harness.accuracy.records import QUESTIONS, SUMMARY, read_record
from harness.accuracy.schema import RecordError
from harness.record import tables
from harness.record.tables import NONE, Sheet, one_line, points

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.accuracy.records import Record

PAGE, PLOT = "report.md", "report.png"


def gather(folder: Path, options: Options | None = None) -> list[ReportedArm]:
    """Read a model's folder and judge every arm against the baseline.

    Args:
        folder: holds a folder for each arm.
        options: how to judge.

    Returns:
        The baseline first, the others by their start.

    Raises:
        RecordError: there is no record, not one baseline, an arm is there twice or in a folder of another name, or a
            record is malformed or of other questions.
        FormatError: a file cannot be read.
        ValueError: an option is out of range.
    """
    if not folder.is_dir():
        msg = f"{describe(folder)}: no such folder; expected a model's folder with a folder for each arm"
        raise RecordError(msg)
    # Questions without a summary are a record that was cut off while it was written: refused, not left out.
    found = {path.parent for name in (SUMMARY, QUESTIONS) for path in folder.glob(f"*/{name}")}
    records = [read_record(path) for path in sorted(found)]
    _refuse_copies(folder, records)
    options = options or Options()
    # Out of range is out of range where no arm will be judged, too.
    limits_for(next(iter(LIMITS)), largest=options.largest, mean=options.mean, identical=options.identical)
    baselines = [record for record in records if record.summary.role == "baseline"]
    if len(baselines) != 1:
        msg = f"{describe(folder)}: {len(records)} records, {len(baselines)} of them baselines; expected one baseline"
        raise RecordError(msg)
    (baseline,) = baselines
    others = sorted((one for one in records if one is not baseline), key=lambda one: one.summary.started)
    arms = [ReportedArm(baseline, None, options)]
    for record in others:
        timed = of_arm(folder, record.summary.arm, record.summary.started)
        complete = {baseline.summary.status, record.summary.status} == {"complete"}
        comparison = compare_records(baseline, record, options) if complete else None
        arms.append(ReportedArm(record, comparison, options, timed))
    return arms


def _refuse_copies(folder: Path, records: Sequence[Record]) -> None:
    """Refuse a record that was copied or renamed: one arm would stand on the page twice, or under another name.

    Raises:
        RecordError: see above; it names both.
    """
    folders: dict[str, str] = {}
    for record in records:
        arm, name = record.summary.arm, record.folder.name
        if arm in folders:
            msg = f"{describe(folder)}: folders {folders[arm]!r} and {name!r} both hold arm {arm!r}; expected every arm once"
            raise RecordError(msg)
        folders[arm] = name
    for arm, name in folders.items():
        if arm != name:
            msg = (
                f"{describe(folder)}: folder {name!r} holds arm {arm!r}; expected a folder of the arm's name"
            )
            raise RecordError(msg)


def page(arms: Sequence[ReportedArm], plot: str | None) -> str:
    """Return the page of Markdown.

    Args:
        arms: from `gather`.
        plot: address of the plot as seen from the page; None for none.
    """
    first = arms[0].summary
    fields = [f"{one_line(arm.name)} ({arm.summary.role}):\n\n{field_table(arm.summary)}" for arm in arms]
    return tables.page(
        title=f"Accuracy of {one_line(first.model)}",
        intro=[_ABOUT.format(dtype=first.dtype, shots=first.task.num_fewshot)],
        picture=plot
        and {"title": "Accuracy, agreement, log-probabilities and load of every arm", "address": plot},
        sections=[
            *(overview(arms) if any(arm.timed for arm in arms) else []),
            *(_accuracy(arms), _agreement(arms), _load(arms)),
            Sheet("Tables", "\n".join(fields).strip()),
            *(sheet for arm in arms for sheet in _of_arm(arm)),
            _runs(arms),
        ],
    )


def _of_arm(arm: ReportedArm) -> list[Sheet]:
    if arm.comparison is not None:
        return [criteria_sheet(arm.comparison)]
    if arm.summary.status == "complete":
        return []
    return [Sheet(one_line(arm.name), f"{arm.summary.status}: {one_line(arm.summary.reason or NONE)}")]


def _accuracy(arms: Sequence[ReportedArm]) -> Sheet:
    rows = []
    for arm in arms:
        summary, comparison = arm.summary, arm.comparison
        value, interval = NONE, NONE
        if summary.value is not None and arm.interval is not None:
            low, high = arm.interval
            value, interval = f"{summary.value:.2f}", f"{low:.2f} to {high:.2f}"
        row = [arm.name, str(summary.num_questions), value, interval]
        if comparison is None:
            answer = "baseline" if summary.role == "baseline" else "not judged"
            answer = answer if summary.status == "complete" else summary.status
            rows.append([*row, *[NONE] * 4, answer])
            continue
        verdict = comparison.verdict
        seen, (low, high) = verdict.pairs.outcomes, verdict.interval
        shown = [points(value, signed=True) for value in (100 * seen.difference, low, high)]
        counts = [str(seen.losses), str(seen.gains)]
        ends = [*counts, points(verdict.loss_limit), verdict.answer]
        rows.append([*row, f"{shown[0]} ({shown[1]} to {shown[2]})", *ends])
    columns = ["arm", "questions", "accuracy, %", "95 % interval", "difference, points (95 %)"]
    return Sheet("Accuracy", "", [*columns, "lost", "gained", "loss at most, points", "verdict"], rows)


def _agreement(arms: Sequence[ReportedArm]) -> Sheet:
    rows = []
    for arm in arms:
        if arm.comparison is None:
            continue
        pairs = arm.comparison.verdict.pairs
        share = 100 * pairs.identical / pairs.outcomes.questions
        found = pairs.differences
        shown = (
            [pairs.why_not or NONE, NONE, NONE]
            if found is None
            else [f"{found.largest:.1e}", f"{found.mean:.1e}", f"{found.tokens}"]
        )
        rows.append([arm.name, f"{pairs.identical} ({share:.2f} %)", *shown])
    if not rows:
        return Sheet("Agreement", "No arm was compared.")
    columns = ["arm", "identical texts", "largest Δ log-probability", "mean", "tokens"]
    return Sheet("Agreement", "", columns, rows)


def _load(arms: Sequence[ReportedArm]) -> Sheet:
    rows = []
    for arm in arms:
        placement, balance, loads = arm.summary.placement, arm.summary.load.balancedness, arm.rank_load
        counts = (placement.ep_size, placement.num_redundant_experts, placement.rearrangements)
        hottest = NONE if loads is None else f"{loads.max():.3f} (layer {int(loads.max(axis=1).argmax())})"
        digest = f"{placement.digest:.12}" if placement.digest else NONE
        shown = [NONE if count is None else str(count) for count in counts]
        shown += [NONE if balance is None else f"{balance:.4f}", hottest, placement.replica_checksums, digest]
        rows.append([arm.name, *shown])
    columns = ["arm", "ranks", "redundant", "rearrangements", "balancedness", "hottest rank / mean"]
    return Sheet("Load", "", [*columns, "replicas", "digest"], rows)


def _runs(arms: Sequence[ReportedArm]) -> Sheet:
    rows = []
    for arm in arms:
        summary = arm.summary
        versions = ", ".join(f"{name} {value}" for name, value in summary.versions if value is not None)
        commit = f"{summary.git.commit or NONE:.12}{' and changes' if summary.git.dirty else ''}"
        machine = ", ".join(_flat(summary.environment))
        rows.append([arm.name, summary.started, f"{summary.seconds:.0f}", commit, versions, machine])
    columns = ["arm", "started", "seconds", "commit", "versions", "environment"]
    return Sheet("Runs", "", columns, rows, right=None)


def _flat(facts: dict[str, Any]) -> list[str]:
    """Return names with values, those of inner objects too."""
    shown = []
    for name, value in facts.items():
        shown += _flat(value) if isinstance(value, dict) else [f"{name} {NONE if value is None else value}"]
    return shown


_ABOUT = f"""\
Written by `accuracy report`; do not edit. {{dtype}}, {{shots}}-shot. Every arm answers the same questions as the baseline
and is judged in pairs. Intervals of an accuracy are exact (Clopper and Pearson), those of a difference Tango's; "loss
at most" is the exact one-sided 95 % limit that the verdict asks for. Log-probabilities are those of the baseline's
texts under each arm. Balancedness is mean / max rank load, 1 is perfect. {NONE} stands for what was not measured."""
