# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Tables, and an arm in the field's format."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.schema import Summary

NONE = "–"
_FIELD_COLUMNS = ("dataset", "version", "metric", "mode", "model")


def one_line(text: str) -> str:
    """Return a text with every run of white space, line breaks too, as a space."""
    return " ".join(text.split())


def points(value: float, *, signed: bool = False) -> str:
    """Return a number with two decimals; what rounds to zero is no "-0.00"."""
    rounded = round(value, 2) + 0.0  # −0.0 + 0.0 is 0.0
    return f"{rounded:+.2f}" if signed else f"{rounded:.2f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: int | None = None) -> str:
    """Return a table.

    Args:
        columns: headings.
        rows: cells; a bar in one would end it and becomes a slash, a line break a space.
        right: columns from this one on are aligned to the right; none where it is None.
    """
    left = len(columns) if right is None else right
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    lines = [columns, rule, *rows]
    return "".join(f"| {' | '.join(one_line(cell).replace('|', '/') for cell in line)} |\n" for line in lines)


def field_table(summary: Summary) -> str:
    """Return an arm as evaluation tools print it; a run that is not complete has no value."""
    task = summary.task
    value = NONE if summary.value is None else f"{summary.value:.2f}"
    return markdown(_FIELD_COLUMNS, [[task.dataset, task.version, task.metric, task.mode, value]])
