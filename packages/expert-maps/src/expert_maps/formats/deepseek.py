# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What DeepSeek's EPLB returns, ``(phy2log [L, P], log2phy [L, E, X], logcnt [L, E])``, as people save it.

By these names in `.npz`, `.safetensors`, `.pt` or JSON, as a list of the three (JSON, `.pt`), or phy2log alone. Rows are MoE layers
only; the number of ranks is not in it. See `phy2log`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import FormatError
from expert_maps.formats import phy2log
from expert_maps.formats.mapfile import MapFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked
    from expert_maps.placement import Placement

NAMES = ("phy2log", "log2phy", "logcnt")


def is_tuple(value: object) -> bool:
    """Whether a list is the three arrays of the tuple, by how deep they are nested."""
    return isinstance(value, list) and [_depth(entry) for entry in value] == [2, 3, 2]


def _depth(value: object) -> int:
    depth = 0
    while isinstance(value, list) and value and depth < 4:  # noqa: PLR2004 - deeper is none of them
        value, depth = value[0], depth + 1
    return depth + (value.ndim if isinstance(value, np.ndarray) else 0)


def parse(content: Content, asked: Asked) -> MapFile:
    """Read the three arrays, or the first alone.

    Raises:
        FormatError: they are malformed or contradict each other, or the number of ranks is not given.
        PlacementError: the slots are no valid placement.
    """
    value = content.value
    if isinstance(value, list) and not is_tuple(value) and _depth(value) != 2:  # noqa: PLR2004 - [L, P]
        msg = "the file is a list; expected (phy2log, log2phy, logcnt) or phy2log [layers, slots]"
        raise FormatError(msg)
    if is_tuple(value) and isinstance(value, list):
        value = dict(zip(NAMES, value, strict=True))
    found = value if isinstance(value, dict) else {NAMES[0]: value}
    placement, text, warnings = phy2log.parse_arrays(found, asked, "DeepSeek EPLB arrays")
    return MapFile(placement, "deepseek", text, warnings, layers=asked.name_rows(placement.num_layers))


def arrays(placement: Placement) -> dict[str, NDArray[np.int64]]:
    """Return phy2log, log2phy and logcnt of a placement, int64."""
    return phy2log.arrays_of(placement, NAMES)
