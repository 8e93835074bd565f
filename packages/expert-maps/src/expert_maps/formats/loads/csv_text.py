# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The text of a CSV file in lines and cells: separators, decimal commas, comments, blank lines, quotes."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass

from expert_maps import limits
from expert_maps.errors import LoadError
from expert_maps.formats.loads.values import shown

_START = 2**16  # characters of a file in which its separator shows


@dataclass(frozen=True)
class CsvText:
    """Lines of a CSV file that are neither blank nor comments; cells are split off when they are asked for.

    Attributes:
        lines: each line, without what follows a ``#``.
        numbers: the number of each line in the file, from 1.
        separator: what stands between cells; None for white space.
    """

    lines: list[str]
    numbers: list[int]
    separator: str | None

    def row(self, index: int) -> list[str]:
        """Return the cells of a line.

        Raises:
            LoadError: quotes that do not close.
        """
        line = self.lines[index]
        if '"' not in line:
            return [cell.strip() for cell in line.split(self.separator)]
        try:
            return [
                cell.strip()
                for cell in next(csv.reader([line], delimiter=self.separator or " ", strict=True))
            ]
        except csv.Error as error:
            msg = f"line {self.numbers[index]} is not CSV: {error}"
            raise LoadError(msg) from error

    def floats(self, index: int, skip: int = 0) -> list[float]:
        """Return the numbers of a line behind its first cells; the caller checks that there are as many as elsewhere.

        Raises:
            LoadError: a cell is no number.
        """
        line = self.lines[index]
        try:
            if "_" not in line and '"' not in line:  # float() takes 1_000, a file should not
                return list(map(float, line.split(self.separator)[skip:]))
        except ValueError:
            pass
        row = self.row(index)[skip:]
        for cell in row:
            if not self.is_number(cell):
                msg = f"not numbers: line {self.numbers[index]} has {shown(cell)!r}"
                raise LoadError(msg)
        return [self.number(cell) for cell in row]

    def is_number(self, cell: str) -> bool:
        """Say whether a cell is a number; with ``;`` or tabs between cells a comma is a decimal point."""
        try:
            self.number(cell)
        except ValueError:
            return False
        return "_" not in cell

    def number(self, cell: str) -> float:
        """Return the number in a cell that has one."""
        return float(self._with_point(cell))

    def _with_point(self, cell: str) -> str:
        return cell.replace(",", ".", 1) if self.separator in {";", "\t"} else cell


def split(text: str) -> CsvText:
    """Split a CSV file into lines, and tell what separates its cells.

    Raises:
        LoadError: more cells than are worth reading as text.
    """
    start = re.sub(r"#[^\n]*", "", text[:_START])
    separator = next((mark for mark in (";", "\t", ",") if mark in start), None)
    cells = text.count(separator) + text.count("\n") if separator else len(text) // 2
    if cells > limits.MAX_CELLS:
        msg = f"the file has about {cells} cells; expected at most {limits.MAX_CELLS}: use .npy or .npz"
        raise LoadError(msg)
    kept = [
        (number, cut)
        for number, line in enumerate(text.splitlines(), 1)
        if (cut := line.split("#", 1)[0].strip(" \r\n"))
    ]
    return CsvText([line for _, line in kept], [number for number, _ in kept], separator)
