# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""TensorRT-LLM's `moe_load_balancer` file, YAML.

```yaml
num_slots: 288
initial_global_assignments:
  3: [138, 81, …]
layer_updates_per_iter: 0
```

Keys are **absolute** layer numbers of MoE layers; a value lists the expert of each slot, num_slots / ep_size consecutive
ones a rank. The number of ranks is not in it, other keys are refused there (`MoeLoadBalancerConfig` of TensorRT-LLM 1.x).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps._layers import layers_text
from expert_maps.errors import FormatError
from expert_maps.formats.checks import as_int, int_table, show
from expert_maps.formats.contradictions import contradiction
from expert_maps.formats.mapfile import MapFile, choose_rows, counts_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked
    from expert_maps.placement import Placement

KEY = "initial_global_assignments"
_KEYS = ("num_slots", KEY, "layer_updates_per_iter")


def balancer_of(value: object) -> Mapping[object, object] | None:
    """Return the part of a YAML or JSON file that has the assignments: the whole, or ``moe_config.load_balancer``."""
    for path in ((), ("moe_config", "load_balancer"), ("load_balancer",)):
        part = value
        for key in path:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict) and KEY in part:
            return part
    return None


def parse(content: Content, asked: Asked) -> MapFile:
    """Read the assignments of the layers, in ascending order.

    Raises:
        FormatError: malformed, without a layer that is asked for, or the number of ranks is not given.
        PlacementError: the slots are no valid placement.
    """
    found = balancer_of(content.value)
    if found is None:
        msg = f"there is no {KEY}; expected TensorRT-LLM's moe_load_balancer with a placement"
        raise FormatError(msg)
    warnings = []
    extra = [str(name) for name in found if name not in _KEYS]
    if extra:
        warnings.append(f"TensorRT-LLM itself refuses other keys: {', '.join(extra)[:80]}")
    if as_int(found.get("layer_updates_per_iter", 0), "layer_updates_per_iter"):
        warnings.append("layer_updates_per_iter is not 0: TensorRT-LLM changes this map while it serves")
    slots = as_int(found.get("num_slots"), "num_slots", 1, limits.MAX_SLOTS)
    rows = _rows(found[KEY])
    ids = sorted(rows)
    for index, layer in enumerate(ids):
        if len(rows[layer]) != slots:
            text = f"{KEY} of layer {layer} has {len(rows[layer])} experts; expected num_slots, {slots}"
            asked.contradict(contradiction(text, layer=index, found=len(rows[layer]), expected=slots))
    _, layers, left_out = choose_rows(asked.layers or "all", ids, KEY)
    if left_out:
        warnings.append(f"the layers {layers_text(left_out)} are in the file but not asked for; left out")
    table = int_table([rows[layer] for layer in layers], KEY)
    placement = asked.place(table)
    text = f"TensorRT-LLM load balancer, layers {layers_text(layers)}, {counts_text(placement)}"
    return MapFile(
        placement,
        "tensorrt-llm",
        text,
        tuple(warnings),
        layers=layers,
        num_hidden_layers=asked.num_hidden_layers,
    )


def _rows(value: object) -> dict[int, list[object]]:
    if not isinstance(value, dict) or not value:
        msg = f"{KEY} is {show(value)}; expected a list of experts for each layer number"
        raise FormatError(msg)
    rows: dict[int, list[object]] = {}
    for key, row in value.items():
        # JSON has no integer keys.
        layer = int(key) if isinstance(key, str) and re.fullmatch(r"[0-9]{1,6}", key) else key
        number = as_int(layer, f"a key of {KEY}", 0, limits.MAX_LAYERS * 16)
        if number in rows:
            msg = f"{KEY} has layer {number} twice"
            raise FormatError(msg)
        if not isinstance(row, list):
            msg = f"{KEY} of layer {number} is {show(row)}; expected a list of experts"
            raise FormatError(msg)
        rows[number] = row
    return rows


def dumps(placement: Placement, layers: Sequence[int]) -> str:
    """Return the YAML text of a placement, a line per layer.

    Args:
        placement: L MoE layers.
        layers: the absolute number of each.
    """
    rows = "".join(
        f"  {layer}: [{', '.join(map(str, np.asarray(row).tolist()))}]\n"
        for layer, row in zip(layers, placement.physical_to_logical, strict=True)
    )
    slots = placement.num_physical_experts
    return f"num_slots: {slots}\n{KEY}:\n{rows}layer_updates_per_iter: 0\n"
