# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The time model and the interval of `advise`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import LayoutError
from expert_maps.simulation.settings import as_positive

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

_RESAMPLES = 2000
_NORMAL = 1.959964


@dataclass(frozen=True)
class TimeModel:
    """What a step of the server takes without EPLB; a and b follow from it.

    Attributes:
        step_ms: milliseconds that one step of the trace takes on average.
        moe_ms: those of them in which the expert layers compute, and all ranks wait for the hottest.
        is_measured: whether both numbers are the user's.
    """

    step_ms: float = 50.0
    moe_ms: float = 25.0
    is_measured: bool = False

    def __post_init__(self) -> None:
        """Refuse what no server has.

        Raises:
            ExpertMapsError: a time is none, or the part exceeds the whole.
        """
        as_positive("step_ms", self.step_ms, "milliseconds")
        as_positive("moe_ms", self.moe_ms, "milliseconds")
        if self.moe_ms > self.step_ms:
            msg = f"moe_ms is {self.moe_ms:g}; expected at most step_ms, {self.step_ms:g}: it is a part of it"
            raise LayoutError(msg)

    def coefficients(self, off: Float64Array, num_layers: int) -> tuple[float, float]:
        """Return a, milliseconds a layer, and b, milliseconds a token of the hottest rank.

        Args:
            off: float64 [steps], tokens of the hottest rank over layers, without EPLB; not all 0.
            num_layers: L.
        """
        return (self.step_ms - self.moe_ms) / num_layers, self.moe_ms / float(off.mean())


def gain_of(without: Float64Array, with_it: Float64Array) -> float:
    """Return the part of the time that is saved, both float64 [steps]."""
    return 1.0 - float(with_it.sum()) / float(without.sum())


def bootstrap(without: Float64Array, with_it: Float64Array, interval: int) -> tuple[int, tuple[float, float]]:
    """Return how many blocks there are, and a 95 % interval of the gain.

    Moving blocks (Künsch, 1989) of at least ``interval`` steps and the root of their number, drawn with replacement;
    the percentiles' distance from the gain is widened as Student's t for so many blocks demands.

    Args:
        without: float64 [steps], milliseconds without EPLB.
        with_it: float64 [steps], milliseconds with it, moves and planner included.
        interval: steps from one plan to the next.
    """
    steps = len(without)
    length = min(steps, max(interval, math.isqrt(steps)))
    blocks = steps // length
    draw = np.random.default_rng(0).integers(0, steps - length + 1, size=(_RESAMPLES, max(blocks, 1)))
    sums = [np.concatenate([[0.0], np.cumsum(times)]) for times in (without, with_it)]
    base, new = ((total[draw + length] - total[draw]).sum(axis=1) for total in sums)
    low, high = np.quantile(1.0 - new / base, [0.025, 0.975])
    gain, wider = gain_of(without, with_it), _student(max(blocks - 1, 1)) / _NORMAL
    return blocks, (gain - wider * max(gain - float(low), 0.0), gain + wider * max(float(high) - gain, 0.0))


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t, by the expansion of Cornish and Fisher: 3 % too low with 3 degrees of freedom."""
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
