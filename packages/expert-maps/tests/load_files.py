# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Small load files of each form, as the tests make them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from expert_maps.models import ModelCounts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

# Layers of one trace have equal totals.
ROWS = [[30, 3, 3, 4], [10, 10, 10, 10], [1, 2, 3, 34]]
SLOT_COUNTS = [10, 1, 3, 4, 20, 2]


def model(moe_layers: tuple[int, ...], hidden: int, experts: int = 4) -> ModelCounts:
    return ModelCounts("tiny", len(moe_layers), experts, moe_layers=moe_layers, num_hidden_layers=hidden)


def write(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def write_safetensors(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> Path:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        content = array.astype("<i8").tobytes()
        header[name] = {
            "dtype": "I64",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return path


def sglang(rows: object) -> dict[str, object]:
    return {"rank": 0, "logical_count": rows, "average_utilization_rate_over_window": None}
