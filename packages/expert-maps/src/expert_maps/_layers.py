# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model are meant, as people write it: ``3-60``, ``0,2,4``, ``all``."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

from expert_maps import limits
from expert_maps.errors import FormatError
from expert_maps.validation import as_count

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


def name_row(row: int, layers: Sequence[int] | None) -> str:
    """Name a row of a map or load, which counts the MoE layers from 0.

    Args:
        row: the MoE layer's index.
        layers: the absolute index of each row among all layers of the model; None if unknown.

    Returns:
        ``layer 0``, or where the model's number is known ``row 0 (layer 3)``.
    """
    return f"layer {row}" if layers is None else f"row {row} (layer {layers[row]})"
