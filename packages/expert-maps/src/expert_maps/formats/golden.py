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

from expert_maps import limits
from expert_maps.errors import ExpertMapsError, FormatError, PlacementError
from expert_maps.placement import Placement
from expert_maps.validation import as_array, as_count

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
    num_layers = as_count("num_layers", num_layers, 1, limits.MAX_LAYERS, FormatError)
    experts = as_count("num_logical_experts", experts, 1, limits.MAX_EXPERTS, FormatError)
    table = as_array("physical_to_logical", rows, FormatError)
    if table.ndim != 2 or table.shape[0] not in {1, num_layers}:  # noqa: PLR2004 - [rows, P] has two axes
        msg = f"physical_to_logical has shape {list(table.shape)}; expected [1, P] or [num_layers {num_layers}, P]"
        raise FormatError(msg)
    if not isinstance(slots_per_rank, list):
        msg = "slots_per_rank is no list; expected the slots of each rank"
        raise FormatError(msg)
    try:
        return Placement(
            np.broadcast_to(table, (num_layers, table.shape[1])),
            len(slots_per_rank),
            num_logical_experts=num_logical_experts or experts,
            slots_per_rank=slots_per_rank,
            allow_uneven=allow_uneven,
            allow_duplicates=allow_duplicates,
        )
    except PlacementError:
        raise
    except ExpertMapsError as error:
        raise FormatError(str(error)) from error
