# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vllm-plugin-das's offline maps, JSON: ``{"version": 2, "model_maps": {NAME: {"physical_to_logical_map": [L, P]}}}``.

One file holds the maps of several models: of the model, its draft layers, the stages of a pipeline. Rows are MoE layers
only; the number of ranks is not in it (HYGON-AI/vllm-plugin-das, `static_eplb.py`, 2026). It is read here, not written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.formats.checks import int_table, show, warn_of_unknown
from expert_maps.formats.mapfile import MapFile, counts_text

if TYPE_CHECKING:
    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked

KEY = "model_maps"
_VERSION = 2
_ROWS = ("physical_to_logical_map", "expert_map")


def parse(content: Content, asked: Asked) -> MapFile:
    """Read one of the maps, the only one or that of the key asked for.

    Raises:
        FormatError: malformed, several maps and no key, or the number of ranks is not given.
        PlacementError: the slots are no valid placement.
    """
    found = content.mapping()
    warnings = warn_of_unknown(found, ("version", KEY))
    if found.get("version", _VERSION) != _VERSION:
        warnings += (f"version is {show(found['version'])}; files of version {_VERSION} are known",)
    maps = found.get(KEY)
    if not isinstance(maps, dict) or not maps:
        msg = f"{KEY} is {show(maps)}; expected an object with a map for each model"
        raise FormatError(msg)
    names = ", ".join(map(repr, list(maps)[:8]))
    if asked.key is None and len(maps) > 1:
        msg = f"the file holds {len(maps)} maps; choose one by its key (--key): {names}"
        raise FormatError(msg)
    key = next(iter(maps)) if asked.key is None else asked.key
    if key not in maps:
        msg = f"there is no map {key!r}; expected one of {names}"
        raise FormatError(msg)
    entry = maps[key]
    present = [name for name in _ROWS if isinstance(entry, dict) and name in entry]
    if len(present) != 1:
        msg = f"{KEY}[{key!r}] is {show(entry)}; expected an object with {_ROWS[0]}"
        raise FormatError(msg)
    warnings += warn_of_unknown(entry, _ROWS)
    placement = asked.place(int_table(entry[present[0]], f"{key}: {present[0]}"))
    text = f"vllm-plugin-das map {key!r}, {counts_text(placement)}"
    return MapFile(
        placement, "vllm-plugin-das", text, warnings, layers=asked.name_rows(placement.num_layers), model=key
    )
