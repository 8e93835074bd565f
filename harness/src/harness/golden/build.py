# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Build a case's data with `expert_maps`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_maps import Placement, generate_placement, plan, read_load, read_placement

if TYPE_CHECKING:
    from pathlib import Path


def build(kind: str, parameters: dict[str, Any], root: Path) -> dict[str, Any]:
    """Return the golden document of a case.

    Args:
        kind: ``layout``, ``map_file`` or ``policy``.
        parameters: the case's parameters.
        root: the golden folder, to which paths are relative.
    """
    options = dict(parameters)
    tp_size = options.pop("tp_size", 1)
    placement = build_placement(kind, options, root)
    rows = range(placement.num_layers)
    if (placement.physical_to_logical == placement.physical_to_logical[0]).all():
        rows = range(1)
    return {
        "num_layers": placement.num_layers,
        "num_logical_experts": placement.num_logical_experts,
        "slots_per_rank": placement.slots_per_rank.tolist(),
        "physical_to_logical": [placement.physical_to_logical[row].tolist() for row in rows],
        "global_expert_map": [placement.global_expert_map(row).tolist() for row in rows],
        "log2phy": [placement.global_log2phy(row, tp_size=tp_size).tolist() for row in rows],
    }


def build_placement(kind: str, options: dict[str, Any], root: Path) -> Placement:
    """Return a case's placement."""
    if kind == "layout":
        return generate_placement(**options)
    if kind == "map_file":
        return read_placement(root / options["path"])
    return plan(load_of(options, root), **plan_options(options)).placement


def load_of(options: dict[str, Any], root: Path) -> Any:  # noqa: ANN401 - lists or an ExpertLoad
    """Return a policy case's load, given in the manifest or in a file."""
    return read_load(root / options["load_file"]) if "load_file" in options else options["load"]


def plan_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return a policy case's arguments of `plan` other than the load."""
    return {key: value for key, value in options.items() if key not in {"load", "load_file"}}
