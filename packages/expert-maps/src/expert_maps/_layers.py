# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model are meant, as people write it: ``3-60``, ``0,2,4``, ``all``; and how layers are named.

A layer is a row of loads and maps, counted from 0 among the MoE layers. The model may number it otherwise, with its dense
layers; then both are said, as ``row 0 (layer 3)``. Where they are equal, or the model's is unknown, it is ``layer 0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

from expert_maps import limits
from expert_maps.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.errors import ExpertMapsError

Layers: TypeAlias = "tuple[int, ...] | Literal['all']"

_EXPECTED = "expected absolute layer numbers like 3-60 or 0,2,4-6, or all"
_DIGITS = 7


def as_layers(layers: Sequence[int] | str, error: type[ExpertMapsError] = FormatError) -> Layers:
    """Return absolute layer indices in ascending order, from a text or a sequence.

    Args:
        layers: ``3-60``, ``0,2,4-6`` or ``all``; or numbers.
        error: what to raise.

    Raises:
        ExpertMapsError: no layers, one twice, one out of order or below 0, or more than there can be.
    """
    from expert_maps.validation import as_count  # which needs NumPy, and names of layers do not

    if isinstance(layers, str):
        return "all" if layers.strip() == "all" else as_layers(_parse(layers, error), error)
    found = tuple(as_count("layers", layer, 0, limits.MAX_LAYERS * 16, error=error) for layer in layers)
    if not found or len(found) > limits.MAX_LAYERS:
        msg = f"layers are {len(found)} in number; expected 1 to {limits.MAX_LAYERS}"
        raise error(msg)
    for before, after in pairwise(found):
        if after <= before:
            msg = f"layers have {after} after {before}; expected each once, in ascending order"
            raise error(msg)
    return found


def _parse(text: str, error: type[ExpertMapsError]) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.replace("–", "-").partition("-"))
        ends = (first, last) if dash else (first, first)
        if not all(end.isascii() and end.isdigit() and len(end) <= _DIGITS for end in ends):
            msg = f"layers are {text[:60]!r}; {_EXPECTED}"
            raise error(msg)
        begin, end = map(int, ends)
        if end < begin or len(found) + end - begin >= limits.MAX_LAYERS:
            msg = f"layers are {text[:60]!r}; {_EXPECTED}, at most {limits.MAX_LAYERS} of them"
            raise error(msg)
        found.extend(range(begin, end + 1))
    return found


def layers_text(layers: Sequence[int] | str) -> str:
    """Write layers as `as_layers` reads them, runs as ranges."""
    if isinstance(layers, str):
        return layers
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(f"{begin}-{end}" if end > begin else f"{begin}" for begin, end in runs)


@dataclass(frozen=True)
class LayerNames:
    """How the rows of a load or map are named.

    Attributes:
        numbers: [L] the model's number of each row; None where they are unknown.
    """

    numbers: tuple[int, ...] | None = None

    @property
    def differ(self) -> bool:
        """Whether the model is known to number its layers otherwise than by row."""
        return self.numbers is not None and self.numbers != tuple(range(len(self.numbers)))

    def short(self, row: int) -> str:
        """Return a row in a list of layers: ``0``, or ``row 0 (layer 3)``."""
        return (
            f"row {row} (layer {self.numbers[row]})" if self.numbers is not None and self.differ else str(row)
        )

    def one(self, row: int) -> str:
        """Name a row: ``layer 0``, or ``row 0 (layer 3)``."""
        return self.short(row) if self.differ else f"layer {row}"

    def several(self, rows: Sequence[int]) -> str:
        """Name rows: ``layers 0-2,5``, or ``rows 0-2 (layers 3-5)``."""
        if len(rows) == 1:
            return self.one(rows[0])
        if self.numbers is None or not self.differ:
            return f"layers {_short(rows)}"
        return f"rows {_short(rows)} (layers {_short([self.numbers[row] for row in rows])})"

    @property
    def columns(self) -> list[str]:
        """The heads of a table's first columns."""
        return ["row", "layer"] if self.differ else ["layer"]

    def cells(self, row: int | None) -> list[str]:
        """Return a row's cells under `columns`; of the total for None."""
        if row is None:
            return ["total", ""] if self.differ else ["total"]
        return [str(row), str(self.numbers[row])] if self.numbers is not None and self.differ else [str(row)]

    @property
    def listed(self) -> list[int] | None:
        """What ``--json`` prints under ``layers``: the model's number of each row, null where unknown."""
        return None if self.numbers is None else list(self.numbers)


UNNUMBERED = LayerNames()
"""Of layers that nobody has numbered."""


def _short(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges; many of them are cut and counted."""
    runs = layers_text(list(numbers)).split(",")
    more = len(runs) - limits.MAX_LISTED
    return ", ".join(runs[: limits.MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
