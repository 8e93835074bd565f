# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Tables in which no number is ever cut: where one is too wide for the terminal, its rows become sentences."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from expert_maps.cli.output import say, width_of, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = Sequence[str]


def print_table(
    title: str, columns: Row, rows: Sequence[Row], *, total: Row | None = None, err: bool = False
) -> None:
    """Print a table, every column to the right.

    Args:
        title: the line above; empty for none.
        columns: the heads.
        rows: a cell for each column.
        total: a last row, set apart.
        err: whether it goes to standard error.
    """
    width = width_of(sys.stderr if err else sys.stdout)
    everything = [columns, *rows, *([total] if total else [])]
    widths = [max(len(row[column]) for row in everything) for column in range(len(columns))]
    if title:
        say(title, err=err, wrap=True)
    if width is not None and sum(widths) + 3 * len(widths) + 1 > width:
        say([wrapped(line, width) for line in _sentences(columns, everything[1:])], err=err)
        return
    lines = [_rule(widths, "┏━┳┓"), _cells(columns, widths, "┃"), _rule(widths, "┡━╇┩")]
    lines += [_cells(row, widths, "│") for row in rows]
    if total:
        lines += [_rule(widths, "├─┼┤"), _cells(total, widths, "│")]
    say("\n".join([*lines, _rule(widths, "└─┴┘")]), err=err)


def _rule(widths: Sequence[int], parts: str) -> str:
    left, line, middle, right = tuple(parts)
    return left + middle.join(line * (width + 2) for width in widths) + right


def _cells(row: Row, widths: Sequence[int], bar: str) -> str:
    return bar + bar.join(f" {cell:>{width}} " for cell, width in zip(row, widths, strict=True)) + bar


def _sentences(columns: Row, rows: Sequence[Row]) -> list[str]:
    return [
        f"{row[0] if row[0] == 'total' else f'{columns[0]} {row[0]}'}: "
        + ", ".join(f"{name} {cell}" for name, cell in zip(columns[1:], row[1:], strict=True) if cell)
        for row in rows
    ]
