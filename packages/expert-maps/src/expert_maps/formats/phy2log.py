# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A placement as three arrays that say it twice: slot → expert, expert → slots, and copies of each expert.

DeepSeek's EPLB returns them as ``(phy2log, log2phy, logcnt)`` (its `eplb.py`), vLLM keeps them in its EPLB state
(0.32.0, `eplb_state.py`). Rows are MoE layers only. The second and third follow from the first and are compared with it;
a replica's place in the second is not kept, for everything here orders an expert's copies by slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import FormatError
from expert_maps.formats.checks import int_array, int_table, warn_of_unknown
from expert_maps.formats.contradictions import Cells, Copies, contradiction
from expert_maps.formats.mapfile import counts_text
from expert_maps.layered import is_derivable, layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from expert_maps.formats.mapfile import Asked
    from expert_maps.layered import AnyPlacement
    from expert_maps.placement import Placement

SLOTS = ("phy2log", "physical_to_logical_map", "physical_to_logical")
COPIES = ("log2phy", "logical_to_physical_map", "logical_to_physical")
COUNTS = ("logcnt", "replica_count", "logical_replica_count")


def parse_arrays(
    found: Mapping[str, object], asked: Asked, what: str
) -> tuple[AnyPlacement, str, tuple[str, ...]]:
    """Make a placement of named arrays and compare those that follow from it.

    Args:
        found: arrays, or nested lists, by name.
        asked: the number of ranks at least.
        what: the format, for the description.

    Returns:
        The placement, a description, and warnings.

    Raises:
        FormatError: an array is missing, malformed, or contradicts the first one; layer and expert are named.
        PlacementError: the slots are no valid placement.
    """
    present = _present(found, SLOTS, asked)
    if not present:
        msg = f"there is no array {' or '.join(SLOTS[:2])}; expected the experts of the slots"
        raise FormatError(msg)
    slots, *others = present
    table = int_table(found[slots], slots)
    follow: dict[str, NDArray[np.int64]] = {}
    experts: int | None = None
    for names, ndim in ((COPIES, 3), (COUNTS, 2)):
        for name in _present(found, names, asked):
            array = int_array(found[name], name, ndim)
            if len(array) != len(table) or (experts is not None and array.shape[1] != experts):
                text = f"{name} has shape {list(array.shape)}; expected {len(table)} layers, as {slots}, and as many experts"
                asked.contradict(contradiction(text, found=f"{list(array.shape)}"))
                continue
            experts, follow[name] = int(array.shape[1]), array
    placement = asked.place(table, experts)
    for name in others:
        _compare_tables(int_table(found[name], name), table, name, slots, asked)
    for layer, part in enumerate(layers_of(placement)):
        if is_derivable(part):  # else its slots are among the violations
            for name, array in follow.items():
                _compare(array[layer], part, layer, name, slots, asked)
    warnings = warn_of_unknown(found, SLOTS + COPIES + COUNTS)
    return placement, f"{what}, {counts_text(placement)}", warnings


def _present(found: Mapping[str, object], names: tuple[str, ...], asked: Asked) -> list[str]:
    """Return those of several names for the same array that are there: one, or none."""
    present = [name for name in names if name in found]
    if len(present) > 1:
        text = f"there are {' and '.join(present)}, which mean the same; expected one of them"
        asked.contradict(contradiction(text, found=len(present), expected=1))
    return present


def _compare_tables(
    other: NDArray[np.int64], table: NDArray[np.int64], name: str, slots: str, asked: Asked
) -> None:
    if other.shape == table.shape:
        asked.contradict_each(Cells(name, ("layer", "physical slot"), other, table, slots))
        return
    text = f"{name} has shape {list(other.shape)}; expected {list(table.shape)}, as {slots}"
    asked.contradict(contradiction(text, found=f"{list(other.shape)}", expected=f"{list(table.shape)}"))


def _compare(
    found: NDArray[np.int64], layer: Placement, row: int, name: str, slots: str, asked: Asked
) -> None:
    if name in COUNTS:
        asked.contradict_each(Cells(name, ("expert",), found, layer.replica_count[0], slots, row))
    else:
        asked.contradict_each(Copies(name, row, found, layer.logical_to_physical[0], slots))


def arrays_of(placement: Placement, names: tuple[str, str, str]) -> dict[str, NDArray[np.int64]]:
    """Return the three arrays of a placement, int64 [L, P], [L, E, X] padded with −1, [L, E], by these names."""
    values = (placement.physical_to_logical, placement.logical_to_physical, placement.replica_count)
    return {name: value.astype(np.int64) for name, value in zip(names, values, strict=True)}
