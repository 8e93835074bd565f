# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Tables: an arm in the field's format, criteria, and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.power import Aim, Sizes
    from harness.accuracy.schema import Summary
    from harness.accuracy.verdict import Verdict

NONE = "–"
_FIELD_COLUMNS = ("dataset", "version", "metric", "mode", "model")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: int | None = None) -> str:
    """Return a table.

    Args:
        columns: headings.
        rows: cells; a bar in one would end it and becomes a slash.
        right: columns from this one on are aligned to the right; none where it is None.
    """
    left = len(columns) if right is None else right
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    lines = [columns, rule, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def field_table(summary: Summary) -> str:
    """Return an arm as evaluation tools print it; a run that is not complete has no value."""
    task = summary.task
    value = NONE if summary.value is None else f"{summary.value:.2f}"
    return markdown(_FIELD_COLUMNS, [[task.dataset, task.version, task.metric, task.mode, value]])


def criteria_table(verdict: Verdict) -> str:
    """Return the criteria in their order."""
    rows = [[one.name, one.value, one.limit, one.outcome] for one in verdict.criteria]
    return markdown(["criterion", "value", "limit", "outcome"], rows)


def sizes_table(found: Sequence[Sizes], aim: Aim) -> str:
    """Return the questions that are needed, a table for each margin."""
    parts = []
    for margin in dict.fromkeys(one.margin for one in found):
        points = f"{100 * margin:g}"
        columns = [
            "discordance",
            f"McNemar, drop of {points}",
            f"no worse by {points}",
            f"within ±{points}",
            "no worse, normal",
            "within ±, normal",
        ]
        rows = []
        for one in found:
            if one.margin == margin:
                counts = (one.drop, one.no_worse, one.within, one.no_worse_normal, one.within_normal)
                shown = [NONE if count is None else str(count) for count in counts]
                rows.append([f"{100 * one.discordance:g} %", *shown])
        title = f"Questions needed: margin {points} points, alpha {aim.alpha:g}, power {aim.power:g}\n\n"
        parts.append(title + markdown(columns, rows, right=1))
    return "\n".join(parts)
