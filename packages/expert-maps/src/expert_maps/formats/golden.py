# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Golden maps: a placement with the maps that follow from it, as data to compare against.

A JSON object with ``num_layers``, ``num_logical_experts``, ``slots_per_rank`` [R] and
``physical_to_logical`` [rows, P], ``global_expert_map`` [rows, R, E] and ``log2phy`` [rows, R, E]; one
row stands for all layers where they are the same.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import FormatError
from expert_maps.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYS = ("num_layers", "num_logical_experts", "slots_per_rank", "physical_to_logical")


def dumps(document: Mapping[str, object]) -> str:
    """Return the object as JSON with the innermost lists on one line each, so that diffs are readable."""
    body = ",\n".join(f"{json.dumps(key)}: {_nested(value, 1)}" for key, value in document.items())
    return "{\n" + body + "\n}\n"


def _nested(value: object, depth: int) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        pad = " " * depth
        return "[\n" + ",\n".join(pad + _nested(entry, depth + 1) for entry in value) + "]"
    return json.dumps(value)


def parse(
    document: object,
    *,
    num_logical_experts: int | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
) -> Placement:
    """Turn a parsed golden map into its placement.

    Args:
        document: the file's content.
        num_logical_experts: E; if None, as the file says.
        allow_uneven: as in `Placement`.
        allow_duplicates: as in `Placement`.

    Raises:
        FormatError: a key is missing or of the wrong type.
        PlacementError: the slots are no valid placement.
    """
    if not isinstance(document, dict) or any(key not in document for key in _KEYS):
        msg = f"not a golden map; expected an object with {', '.join(_KEYS)}"
        raise FormatError(msg)
    num_layers, experts, slots_per_rank, rows = (document[key] for key in _KEYS)
    if not all(isinstance(count, int) and count > 0 for count in (num_layers, experts)):
        msg = f"num_layers is {num_layers!r}, num_logical_experts {experts!r}; expected integers above 0"
        raise FormatError(msg)
    try:
        table = np.array(rows)
        if table.shape[0] not in {1, num_layers}:
            msg = f"physical_to_logical has {table.shape[0]} rows; expected 1 or num_layers {num_layers}"
            raise FormatError(msg)
        return Placement(
            np.broadcast_to(table, (num_layers, table.shape[1])),
            len(slots_per_rank),
            num_logical_experts=num_logical_experts or experts,
            slots_per_rank=slots_per_rank,
            allow_uneven=allow_uneven,
            allow_duplicates=allow_duplicates,
        )
    except (TypeError, IndexError) as error:
        msg = f"slots_per_rank or physical_to_logical is malformed: {error}"
        raise FormatError(msg) from error
