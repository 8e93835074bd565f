# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's `--init-expert-location`: ``{"physical_to_logical_map": [layers, slots]}`` as JSON or `.pt`.

There is a row for **every** layer of the model, dense ones too: SGLang looks rows up by a layer's number. What stands in a
dense layer's row is never used; SGLang's own initial placement is slot → slot mod E. It takes no other key beside this one,
and neither the number of ranks nor of experts is in the file (SGLang's `expert_location.py`, 2025).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._layers import layers_text
from expert_maps.errors import FormatError
from expert_maps.formats.checks import int_table
from expert_maps.formats.mapfile import MapFile, choose_rows, counts_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked
    from expert_maps.placement import Placement

KEY = "physical_to_logical_map"


def parse(content: Content, asked: Asked) -> MapFile:
    """Read the rows of the MoE layers; all rows where nobody says which these are, with a warning.

    Raises:
        FormatError: malformed, without a layer that is asked for, or the number of ranks is not given.
        PlacementError: the slots are no valid placement.
    """
    value = content.value
    found = value if isinstance(value, dict) else {KEY: value}
    if KEY not in found:
        msg = f"there is no {KEY}; expected SGLang's expert location"
        raise FormatError(msg)
    extra = [name for name in found if name != KEY]
    warnings = [f"SGLang itself refuses a file with other keys: {', '.join(extra)[:80]}"] if extra else []
    table = int_table(found[KEY], KEY)
    rows = len(table)
    if asked.num_hidden_layers is not None and rows != asked.num_hidden_layers:
        msg = f"{KEY} has {rows} rows; expected {asked.num_hidden_layers}, one for each layer of the model"
        raise FormatError(msg)
    chosen, layers, left_out = choose_rows(asked.layers or "all", range(rows), KEY)
    unsaid = asked.layers is None
    if unsaid:
        warnings.append(
            f"SGLang's {rows} rows are all layers of the model, dense ones too; taken as {rows} MoE layers: say which are "
            "MoE by --model, --layers 3-60 or --layers all"
        )
    placement = asked.place(table[chosen])
    if left_out:
        dense = np.delete(table, chosen, axis=0)
        strange = (dense < 0) | (dense >= placement.num_logical_experts)
        if strange.any():
            named = layers_text([layer for layer, row in zip(left_out, strange, strict=True) if row.any()])
            warnings.append(
                f"the rows of the dense layers {named} hold experts that do not exist: SGLang reads all rows, and may fail"
            )
    text = f"SGLang expert location of {rows} layers, {counts_text(placement)}"
    if left_out:
        text += f"; dense layers left out: {layers_text(left_out)}"
    return MapFile(
        placement,
        "sglang",
        text,
        tuple(warnings),
        layers=None if unsaid else layers,
        has_dense_rows=unsaid,
        num_hidden_layers=rows,
    )


def table(placement: Placement, layers: Sequence[int], num_hidden_layers: int) -> NDArray[np.int64]:
    """Return a row for every layer of the model: int64 [num_hidden_layers, P].

    Args:
        placement: L MoE layers.
        layers: the absolute index of each.
        num_hidden_layers: all layers; those without experts get SGLang's initial placement.
    """
    slots, experts = placement.num_physical_experts, placement.num_logical_experts
    rows = np.tile(np.arange(slots, dtype=np.int64) % experts, (num_hidden_layers, 1))
    rows[list(layers)] = placement.physical_to_logical
    return rows


def dumps(rows: NDArray[np.int64]) -> str:
    """Return the rows as SGLang's JSON, a line per layer."""
    return f'{{"{KEY}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows.tolist()) + "\n]}\n"
