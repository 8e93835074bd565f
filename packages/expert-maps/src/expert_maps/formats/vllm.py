# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's EPLB state: ``physical_to_logical_map`` [L, P], ``logical_to_physical_map`` [L, E, X], ``logical_replica_count`` [L, E].

vLLM itself neither saves nor loads them; people save the tensors of its `EplbModelState` (0.32.0, `eplb_state.py`). Rows
are MoE layers only; the number of ranks is not in it. See `phy2log`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.formats import phy2log
from expert_maps.formats.mapfile import MapFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked
    from expert_maps.placement import Placement

NAMES = ("physical_to_logical_map", "logical_to_physical_map", "logical_replica_count")


def parse(content: Content, asked: Asked) -> MapFile:
    """Read the arrays, of which the first is enough.

    Raises:
        FormatError: they are malformed or contradict each other, or the number of ranks is not given.
        PlacementError: the slots are no valid placement.
    """
    found = content.value if isinstance(content.value, dict) else {NAMES[0]: content.value}
    placement, text, warnings = phy2log.parse_arrays(found, asked, "vLLM EPLB arrays")
    return MapFile(placement, "vllm", text, warnings, layers=asked.name_rows(placement.num_layers))


def arrays(placement: Placement) -> dict[str, NDArray[np.int64]]:
    """Return the three arrays of a placement, int64, by vLLM's names."""
    return phy2log.arrays_of(placement, NAMES)
