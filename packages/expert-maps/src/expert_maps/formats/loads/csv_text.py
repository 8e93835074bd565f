# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The text of a CSV file in lines and cells: separators, decimal commas, comments, blank lines, quotes."""

from __future__ import annotations

import csv
import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps.errors import LoadError, printable
from expert_maps.formats.loads.values import listed, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

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
            msg = f"line {self.numbers[index]} is not CSV: {printable(str(error))}"
            raise LoadError(msg) from error

    def head(self, index: int, count: int) -> list[str]:
        """Return the first cells of a line, as `row` does."""
        line = self.lines[index]
        if '"' in line:
            return self.row(index)[:count]
        return [cell.strip() for cell in line.split(self.separator, count)[:count]]

    def floats(self, index: int, skip: int = 0) -> list[float]:
        """Return the numbers of a line behind its first cells; the caller checks that there are as many as elsewhere.

        Raises:
            LoadError: a cell is no number.
        """
        line = self.lines[index]
        cells = line.split(self.separator)[skip:]
        try:
            # float() takes 1_000, a file should not.
            if '"' not in line and ("_" not in line or not any("_" in cell for cell in cells)):
                return list(map(float, cells))
        except ValueError:
            pass
        row = self.row(index)[skip:]
        for cell in row:
            if not self.is_number(cell):
                msg = f"not numbers: line {self.numbers[index]} has {shown(cell)!r}"
                raise LoadError(msg)
        return [self.number(cell) for cell in row]

    def table(self, start: int = 0, skip: int = 0) -> Float64Array:
        """Return the numbers of all lines, float64 [lines, columns].

        Args:
            start: lines before the numbers.
            skip: cells before the numbers of a line.

        Raises:
            LoadError: none, a cell is no number, or lines of unequal length.
        """
        flat = array("d")
        lengths: set[int] = set()
        for index in range(start, len(self.lines)):
            row = self.floats(index, skip)
            lengths.add(len(row))
            flat.fromlist(row)
        if len(lengths) != 1 or lengths == {0}:
            found = listed(sorted(length + skip for length in lengths))
            msg = f"lines have [{found}] numbers; expected one line a layer, all of one length"
            raise LoadError(msg)
        return np.frombuffer(flat, dtype=np.float64).reshape(-1, lengths.pop())

    def is_number(self, cell: str) -> bool:
        """Say whether a cell is a number; with ``;`` or tabs between cells a comma is a decimal point."""
        return self.number_or_none(cell) is not None

    def number_or_none(self, cell: str) -> float | None:
        """Return the number in a cell, None where there is none."""
        try:
            return None if "_" in cell else self.number(cell)
        except ValueError:
            return None

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
    separator = next((mark for mark in (";", "\t", ",", "|") if mark in start), None)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    ends = text.count("\n")
    if ends > limits.MAX_LINES:
        msg = f"the file has {ends} lines; expected at most {limits.MAX_LINES}: use .npy or .npz"
        raise LoadError(msg)
    cells = ends + (text.count(separator) if separator else len(text) // 2)
    if cells > limits.MAX_CELLS:
        msg = f"the file has about {cells} cells; expected at most {limits.MAX_CELLS}: use .npy or .npz"
        raise LoadError(msg)
    lines, numbers = [], []
    for number, line in enumerate(text.split("\n"), 1):
        cut = line.split("#", 1)[0].strip(" ")
        if cut:
            lines.append(cut)
            numbers.append(number)
    # Some tools end every line with a separator, behind which there is no column.
    if separator is not None and lines and all(line.endswith(separator) for line in lines):
        lines = [line.removesuffix(separator) for line in lines]
    return CsvText(lines, numbers, separator)
