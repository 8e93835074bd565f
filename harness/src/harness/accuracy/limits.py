# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How far answers and log-probabilities may differ by rounding alone, by dtype.

Measured on the embedded model (`accuracy/tiny-moe`), with forced continuations; |Δ| is the difference to the placement
without replicas. `accuracy/results/tiny-moe/{report,sensitivity,false_alarms}.md` hold the figures of float32 and bfloat16.
The largest and the mean |Δ| were, of all 1,319 questions where nothing was wrong, 7.3e-6 and 9e-10 in float32, 7.9e-2 and
9e-5 in bfloat16 (float16, other batches and placements: 1.5e-2 and 1.1e-5); of the smallest fault, 5 % noise in one
replica of one layer, 4.3e-5 and 6e-9 in float32, and as where nothing is wrong in 16 bits. So float32 sees small faults
that the rounding of 16 bits hides; those are left to the checksums of the replicas. The limit of the largest stands between
harmless and the smallest fault that the dtype shows.

In float32 rounding moves a token that the model is sure of by next to nothing: the mean |Δ| is 2.4e-6 … 4.2e-6 of the mean
of 1 − p, on its own task as on GSM8K, which it does not know. So the limit of the mean grows with the baseline's mean of
1 − p, and that of the largest with the logarithm of the sum of 1 − p, as the largest of so many does: see `Limits.of`.

In 16 bits nothing of the kind holds from one model to the next: where rounding turns a choice of experts, a token changes by
much, and a deeper model rounds further. There the limits come from a floor: the baseline asked once more, in another order
(role `repeat`), what differs being rounding. An arm may differ by `FACTOR` times as much, and no limit is below the
table's, as a repeat may come out equal; harmless placements reach 1.4 times. Limits that are given (`--largest`, …) are
taken as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# How much more than the baseline by itself an arm may differ, in 16 bits.
FACTOR = 3.0
# Of the embedded model on its 1,319 questions.
_UNSURE, _TOKENS = 2.66e-4, 41279


@dataclass(frozen=True)
class Floor:
    """What rounding alone does: the baseline beside itself.

    Attributes:
        largest: of |Δ log-probability| of a token.
        mean: of |Δ log-probability| over tokens.
        changed: share of texts that changed, in [0, 1].
    """

    largest: float
    mean: float
    changed: float


@dataclass(frozen=True)
class Limits:
    """What rounding explains.

    Attributes:
        largest: of |Δ log-probability| of a token.
        mean: of |Δ log-probability| over tokens.
        identical: share of texts that stay the same, in [0, 1].
        given: those of the three that a user gave, which nothing changes.
        slope: of the mean, for each unit of the baseline's mean of 1 − p.
        needs_floor: whether the others come from a floor.
    """

    largest: float
    mean: float
    identical: float
    given: frozenset[str] = frozenset()
    slope: float = 0.0
    needs_floor: bool = False

    def lacks_floor(self, name: str, floor: Floor | None) -> bool:
        """Say whether nobody knows a limit, as the floor was not measured."""
        return self.needs_floor and name not in self.given and floor is None

    def of(self, name: str, unsure: float, tokens: int, floor: Floor | None = None) -> float:
        """Return a limit of |Δ log-probability|.

        Args:
            name: ``largest`` or ``mean``.
            unsure: mean of 1 − p over the baseline's tokens.
            tokens: how many they are.
            floor: in 16 bits.
        """
        bound = float(getattr(self, name))
        if name in self.given:
            return bound
        if self.needs_floor:
            return max(bound, FACTOR * float(getattr(floor, name, 0.0)))
        if name == "mean":
            return max(bound, self.slope * unsure)
        return bound * max(1.0, math.log(max(1.0, unsure * tokens)) / math.log(_UNSURE * _TOKENS))

    def changed(self, floor: Floor | None = None) -> float:
        """Return the share of texts that may change."""
        share = 1 - self.identical
        if "identical" in self.given or not self.needs_floor or floor is None:
            return share
        return min(1.0, max(share, FACTOR * floor.changed))


LIMITS = {
    "float32": Limits(largest=2e-5, mean=2e-8, identical=0.995, slope=7.5e-5),
    "float16": Limits(largest=3e-2, mean=3e-5, identical=0.99, needs_floor=True),
    "bfloat16": Limits(largest=1.25e-1, mean=3e-4, identical=0.99, needs_floor=True),
}


def limits_for(
    dtype: str, *, largest: float | None = None, mean: float | None = None, identical: float | None = None
) -> Limits:
    """Return the limits of a dtype, with those replaced that are given.

    Raises:
        ValueError: there are none for the dtype and not all are given, or one is out of range.
    """
    asked = {"largest": largest, "mean": mean, "identical": identical}
    given = {name: value for name, value in asked.items() if value is not None}
    if dtype not in LIMITS and len(given) < len(asked):
        msg = f"dtype is {dtype!r}; expected one of {', '.join(LIMITS)}, or all three limits"
        raise ValueError(msg)
    for name, value in given.items():
        most, expected = (
            (1.0, "a share of 0 to 1") if name == "identical" else (math.inf, "a number of at least 0")
        )
        if not 0 <= value <= most or value == math.inf:
            msg = f"limit {name} is {value:g}; expected {expected}"
            raise ValueError(msg)
    known = LIMITS.get(dtype, Limits(0.0, 0.0, 0.0))
    return replace(known, **given, given=frozenset(given))  # type: ignore[arg-type] # numbers
