# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Golden maps: a placement with the maps that follow from it, as data to compare against.

A JSON object with ``num_layers``, ``num_logical_experts``, ``slots_per_rank`` [R] and
``physical_to_logical`` [rows, P], ``global_expert_map`` [rows, R, E] and ``log2phy`` [rows, R, E]; one
row stands for all layers where they are the same. Maps that follow are compared with what is derived here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError
from expert_maps.formats.checks import as_int, int_array, int_table, show, warn_of_unknown
from expert_maps.formats.contradictions import Cells, contradiction
from expert_maps.formats.mapfile import MapFile, counts_text
from expert_maps.layered import is_derivable, layer_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked
    from expert_maps.layered import AnyPlacement
    from expert_maps.placement import Placement

_KEYS = ("num_layers", "num_logical_experts", "slots_per_rank", "physical_to_logical")
_DERIVED = ("global_expert_map", "log2phy")


def dumps(document: Mapping[str, object]) -> str:
    """Return the object as JSON with the innermost lists on one line each, so that diffs are readable."""
    body = ",\n".join(f"{json.dumps(key)}: {_nested(value, 1)}" for key, value in document.items())
    return "{\n" + body + "\n}\n"


def _nested(value: object, depth: int) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        pad = " " * depth
        return "[\n" + ",\n".join(pad + _nested(entry, depth + 1) for entry in value) + "]"
    return json.dumps(value)


def document_of(placement: Placement) -> dict[str, object]:
    """Return the golden map of a placement; one row where all layers are the same.

    Raises:
        FormatError: its derived maps are too large to write.
    """
    rows = placement.physical_to_logical
    if (rows == rows[0]).all():
        rows = rows[:1]
    _limit_maps(len(rows), placement.ep_size, placement.num_logical_experts)
    return {
        "num_layers": placement.num_layers,
        "num_logical_experts": placement.num_logical_experts,
        "slots_per_rank": placement.slots_per_rank.tolist(),
        "physical_to_logical": rows.tolist(),
        "global_expert_map": [placement.global_expert_map(layer).tolist() for layer in range(len(rows))],
        "log2phy": [placement.global_log2phy(layer).tolist() for layer in range(len(rows))],
    }


def parse_file(content: Content, asked: Asked) -> MapFile:
    """Read a golden map.

    Raises:
        FormatError: a key is missing or of the wrong type, a count is too large, a map differs from what follows, or it has
            other ranks or layers than asked.
        PlacementError: the slots are no valid placement.
    """
    placement = _parse(content.value, asked)
    asked.check_ranks(placement.ep_size)
    layers = asked.name_rows(placement.num_layers)
    warnings = warn_of_unknown(content.mapping(), (*_KEYS, *_DERIVED))
    return MapFile(placement, "golden", f"golden map, {counts_text(placement)}", warnings, layers=layers)


def _parse(document: object, asked: Asked) -> AnyPlacement:
    if not isinstance(document, dict) or any(key not in document for key in _KEYS):
        msg = f"not a golden map; expected an object with {', '.join(_KEYS)}"
        raise FormatError(msg)
    num_layers = as_int(document["num_layers"], "num_layers", 1, limits.MAX_LAYERS)
    experts = as_int(document["num_logical_experts"], "num_logical_experts", 1, limits.MAX_EXPERTS)
    rows = int_table(document["physical_to_logical"], "physical_to_logical")
    slots = _slots(document["slots_per_rank"], rows.shape[1], asked)
    if len(rows) not in {1, num_layers}:
        text = f"physical_to_logical has {len(rows)} rows; expected 1 or num_layers {num_layers}"
        asked.contradict(contradiction(text, found=len(rows), expected=num_layers))
        num_layers = len(rows)
    if num_layers * rows.shape[1] > limits.MAX_SLOTS:
        msg = f"{num_layers} layers of {rows.shape[1]} slots are more than {limits.MAX_SLOTS}; expected at most so many"
        raise FormatError(msg)
    placement = asked.arrange(
        np.broadcast_to(rows, (num_layers, rows.shape[1])).ravel(),
        np.broadcast_to(slots, (num_layers, len(slots))),
        asked.num_logical_experts or experts,
    )
    for key in _DERIVED:
        if key in document:
            _compare(placement, document[key], key, len(rows), asked)
    return placement


def _slots(value: object, num_physical: int, asked: Asked) -> NDArray[np.int64]:
    if not isinstance(value, list) or not 1 <= len(value) <= limits.MAX_RANKS:
        msg = f"slots_per_rank is {show(value)}; expected a list of 1 to {limits.MAX_RANKS} integers"
        raise FormatError(msg)
    slots = [
        as_int(entry, f"slots_per_rank[{rank}]", 0, limits.MAX_SLOTS) for rank, entry in enumerate(value)
    ]
    if sum(slots) != num_physical:
        text = f"slots_per_rank add up to {sum(slots)}; expected {num_physical}, the slots of physical_to_logical"
        asked.contradict(contradiction(text, found=sum(slots), expected=num_physical))
        msg = "nothing says which rank has which slots"
        raise FormatError(msg)
    return np.array(slots, dtype=np.int64)


def _compare(placement: AnyPlacement, value: object, key: str, num_rows: int, asked: Asked) -> None:
    """Compare a map of the file with what follows from its slots."""
    experts, ranks = placement.num_logical_experts, placement.ep_size
    _limit_maps(num_rows, ranks, experts)
    found = int_array(value, key, 3)
    rows = len(found)
    if rows not in {1, num_rows, placement.num_layers} or found.shape[1:] != (ranks, experts):
        shape = f"{list(found.shape)}"
        expected = f"[{num_rows}, {ranks}, {experts}]"
        text = f"{key} has shape {shape}; expected {expected}"
        asked.contradict(contradiction(text, found=shape, expected=expected))
        return
    for layer in range(max(rows, num_rows)):
        part = layer_of(placement, layer)
        if not is_derivable(part):  # its slots are among the violations
            continue
        derived = part.global_expert_map(0) if key == "global_expert_map" else part.global_log2phy(0)
        of_file = found[min(layer, rows - 1)]
        asked.contradict_each(Cells(key, ("rank", "expert"), of_file, derived, "physical_to_logical", layer))


def _limit_maps(num_rows: int, ranks: int, experts: int) -> None:
    if num_rows * ranks * experts > limits.MAX_TABLE:
        msg = (
            f"maps of {num_rows} rows, {ranks} ranks and {experts} experts have {num_rows * ranks * experts} numbers; "
            f"expected at most {limits.MAX_TABLE}"
        )
        raise FormatError(msg)
