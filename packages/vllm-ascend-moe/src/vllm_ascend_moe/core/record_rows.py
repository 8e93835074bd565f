# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of a record: how many there may be, and how they are added up where there are more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_ascend_moe.core.record_file import MOST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm_ascend_moe.core.meter import Meter

# Past these the older rows are added up in pairs: the file stays bounded, and no token is lost.
MAX_ROWS = 4096
MAX_NUMBERS = 4_000_000


def most_rows(shape: tuple[int, ...]) -> int:
    """Return how many rows of a shape [L, E] a record has at most."""
    return max(2, min(MAX_ROWS, MAX_NUMBERS // math.prod(shape)))


def rows_left(count: int, shape: tuple[int, ...]) -> int:
    """Return how many of so many rows `bounded` leaves."""
    while count > most_rows(shape):
        half = max(2, count // 2)
        count -= half // 2
    return count


def bounded(rows: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Add up neighbours in the older half until there are few enough rows; recent steps stay single."""
    most = most_rows(rows[0].shape) if rows else 0
    while len(rows) > most:
        half = max(2, len(rows) // 2)
        older = [add(rows[i], rows[i + 1]) if i + 1 < half else rows[i] for i in range(0, half, 2)]
        rows = older + rows[half:]
    return rows


class Unmeasured:
    """What the steps since the last write add up to, for the metrics; the recorder's own."""

    def __init__(self) -> None:
        """Hold no step."""
        self._load: NDArray[np.int64] | None = None
        self._count = 0

    def add(self, steps: list[NDArray[np.int64]]) -> None:
        """Take steps, [L, E] each, at least one."""
        load = np.sum(steps, axis=0)
        self._load = load if self._load is None else add(self._load, load)
        self._count += len(steps)

    def tell(self, meter: Meter) -> None:
        """Tell the metrics, and hold none of it any more."""
        if self._load is not None:
            meter.measure_experts(self._load)
            meter.wrote(self._count)
        self._load, self._count = None, 0


def add(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add counts from 0; what would be above the highest becomes it, and none becomes negative."""
    return np.where(b > MOST - a, MOST, a + np.minimum(b, MOST - a))


def add_tensors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Add counts as `add` does; one that is negative already makes a sum that is."""
    a, b = a.long(), b.long()
    added = a + b
    return torch.where((a | b) < 0, -1, torch.where(added < 0, MOST, added))
