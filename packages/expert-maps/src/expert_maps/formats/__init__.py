# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Reading and writing: one file per format; algorithms do no I/O of their own."""

from __future__ import annotations

from expert_maps.formats.loads import inspect_load, read_load
from expert_maps.formats.native import write_placement
from expert_maps.formats.placements import inspect_map, read_any_placement, read_placement
from expert_maps.formats.weights import read_weights, write_weights

__all__ = [
    "inspect_load",
    "inspect_map",
    "read_any_placement",
    "read_load",
    "read_placement",
    "read_weights",
    "write_placement",
    "write_weights",
]
