# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A placement as three arrays that say it twice: slot → expert, expert → slots, and copies of each expert.

DeepSeek's EPLB returns them as ``(phy2log, log2phy, logcnt)`` (its `eplb.py`), vLLM keeps them in its EPLB state
(0.32.0, `eplb_state.py`). Rows are MoE layers only. The second and third follow from the first and are compared with it;
a replica's place in the second is not kept, for everything here orders an expert's copies by slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps.errors import FormatError
from expert_maps.formats.checks import int_array, int_table
from expert_maps.formats.mapfile import counts_text
from expert_maps.validation import first_true

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from expert_maps.formats.mapfile import Asked
    from expert_maps.placement import Placement

SLOTS = ("phy2log", "physical_to_logical_map", "physical_to_logical")
COPIES = ("log2phy", "logical_to_physical_map", "logical_to_physical")
COUNTS = ("logcnt", "replica_count", "logical_replica_count")


def parse_arrays(found: Mapping[str, object], asked: Asked, what: str) -> tuple[Placement, str]:
    """Make a placement of named arrays and compare those that follow from it.

    Args:
        found: arrays, or nested lists, by name.
        asked: the number of ranks at least.
        what: the format, for the description.

    Returns:
        The placement, and a description.

    Raises:
        FormatError: an array is missing, malformed, or contradicts the first one; layer and expert are named.
        PlacementError: the slots are no valid placement.
    """
    slots, copies, counts = (_one_of(found, names) for names in (SLOTS, COPIES, COUNTS))
    if slots is None:
        msg = f"there is no array {' or '.join(SLOTS[:2])}; expected the experts of the slots"
        raise FormatError(msg)
    table = int_table(found[slots], slots)
    experts: int | None = None
    tables: dict[str, NDArray[np.int64]] = {}
    for name, ndim in ((copies, 3), (counts, 2)):
        if name is None:
            continue
        array = tables[name] = int_array(found[name], name, ndim)
        if len(array) != len(table) or (experts is not None and array.shape[1] != experts):
            msg = f"{name} has shape {list(array.shape)}; expected {len(table)} layers, as {slots}, and as many experts"
            raise FormatError(msg)
        experts = int(array.shape[1])
    placement = asked.place(table, experts)
    if counts is not None:
        _compare_counts(tables[counts], placement, counts, slots)
    if copies is not None:
        _compare_copies(tables[copies], placement, copies, slots)
    return placement, f"{what}, {counts_text(placement)}"


def _one_of(found: Mapping[str, object], names: tuple[str, ...]) -> str | None:
    present = [name for name in names if name in found]
    if len(present) > 1:
        msg = f"there are {' and '.join(present)}, which mean the same; expected one of them"
        raise FormatError(msg)
    return present[0] if present else None


def _compare_counts(counts: NDArray[np.int64], placement: Placement, name: str, slots: str) -> None:
    wrong = first_true(counts != placement.replica_count)
    if wrong is not None:
        layer, expert = wrong[0]
        msg = (
            f"{name} at layer {layer}, expert {expert} is {counts[layer, expert]}; expected "
            f"{placement.replica_count[layer, expert]} copies by {slots} ({wrong[1]} differ)"
        )
        raise FormatError(msg)


def _compare_copies(copies: NDArray[np.int64], placement: Placement, name: str, slots: str) -> None:
    """Compare as sets: the order of copies differs from one system to the next."""
    for layer, (found, expected) in enumerate(zip(copies, placement.logical_to_physical, strict=True)):
        width = max(found.shape[1], expected.shape[1])
        wrong = np.nonzero((_sorted(found, width) != _sorted(expected, width)).any(axis=1))[0]
        if wrong.size:
            expert = int(wrong[0])
            msg = (
                f"{name} at layer {layer}, expert {expert} is {_valid(found[expert])}; expected "
                f"{_valid(expected[expert])} by {slots} ({len(wrong)} experts of this layer differ)"
            )
            raise FormatError(msg)


def _sorted(copies: NDArray[np.integer[Any]], width: int) -> NDArray[np.int64]:
    """Return each expert's slots in ascending order and then −1, all of one width: int64 [E, width]."""
    padded = np.pad(copies, [(0, 0), (0, width - copies.shape[1])], constant_values=-1).astype(np.int64)
    last = np.iinfo(np.int64).max
    ordered = np.sort(np.where(padded == -1, last, padded), axis=1)
    return np.where(ordered == last, -1, ordered)


def _valid(slots: NDArray[np.integer[Any]]) -> str:
    found: list[Any] = slots[slots != -1].tolist()
    return f"{found}" if len(found) <= 8 else f"[{', '.join(map(str, found[:8]))}, …]"  # noqa: PLR2004 - one line


def arrays_of(placement: Placement, names: tuple[str, str, str]) -> dict[str, NDArray[np.int64]]:
    """Return the three arrays of a placement, int64 [L, P], [L, E, X] padded with −1, [L, E], by these names."""
    values = (placement.physical_to_logical, placement.logical_to_physical, placement.replica_count)
    return {name: value.astype(np.int64) for name, value in zip(names, values, strict=True)}
