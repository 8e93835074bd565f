# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How far answers and log-probabilities may differ by rounding alone, by dtype.

Measured on the embedded model (`accuracy/tiny-moe`: 4 layers, 16 experts + 4 replicas on 2 ranks, top-4), which knows its
task well (mean log-probability −0.0003), with forced continuations. |Δ| is the difference to the placement without
replicas. `accuracy/results/tiny-moe/{report,sensitivity,false_alarms}.md` hold the figures of float32 and bfloat16; those
of float16, and of bfloat16 with all questions, were measured on another model of this size.

| | float32 largest | mean | float16 largest | mean | bfloat16 largest | mean |
|---|---|---|---|---|---|---|
| harmless: other batches, placements, ranks | 2.0e-6 | 6e-10 | 1.5e-2 | 1.1e-5 | 2.2e-2 | 1.0e-5 |
| harmless: all 1,319 questions | 7.3e-6 | 9e-10 | | | 7.9e-2 | 9e-5 |
| 5 % noise in a replica, layer by layer, least | 4.3e-5 | 6e-9 | as harmless | as harmless | as harmless | as harmless |
| 5 % noise in a replica, layer by layer, most | 1.6e-2 | 3.6e-6 | 5.6e-2 | 4.1e-5 | 2.0e-1 | 1.4e-4 |
| a replica zeroed, least | 1.2e-4 | 4e-8 | | | | |
| a replica zeroed, most | 1.9e+1 | 2.2e-1 | 4.6 | 1.3e-3 | 4.6 | 1.4e-3 |
| a stale scale (W8A8) | | | | | 1.4e-2 … 5.3e-1 | 8e-6 … 1.2e-4 |

So float32 sees small faults that the rounding of 16 bits hides; those are left to the checksums of the replicas. The limit
of the largest stands between harmless and the smallest fault that the dtype shows (float32: 2.7 times the one, half of the
other).

In float32 rounding moves a token that the model is sure of by next to nothing: the mean |Δ| is 2.4e-6 … 4.2e-6 of the mean
of 1 − p, on its own task (mean of 1 − p: 2.7e-4) as on GSM8K, which it does not know (4.8e-2; |Δ| at most 1.5e-5, mean
1.7e-7). So the limit of the mean grows with the baseline's mean of 1 − p, and that of the largest with the logarithm of
the sum of 1 − p, as the largest of so many does: see `Limits.of`.

In 16 bits nothing of the kind holds from one model to the next: where rounding turns a choice of experts, a token changes by
much, and a deeper model rounds further. There the limits come from a floor: the baseline asked once more, in another order
(role `repeat`), what differs being rounding. An arm may differ by `FACTOR` times as much, and no limit is below the
table's, as a repeat may come out equal. On the embedded model in bfloat16 the harmless placements of
`false_alarms.json` have up to 1.4 times the largest |Δ| of the repeat there, and 1.3 times its mean. Limits that are
given (`--largest`, …) are taken as they are.

Identical texts: all of 1,319 (float32) and 1,317 of them (bfloat16) where nothing was wrong; 34 to 100 % with a
neighbour's weights, by the layer.
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
    known = LIMITS.get(dtype)
    given = (largest, mean, identical)
    if known is None and None in given:
        msg = f"dtype is {dtype!r}; expected one of {', '.join(LIMITS)}, or all three limits"
        raise ValueError(msg)
    for name, value in (("largest", largest), ("mean", mean), ("identical", identical)):
        if value is not None and not (0 <= value < math.inf and (name != "identical" or value <= 1)):
            msg = f"limit {name} is {value:g}; expected {'a share of 0 to 1' if name == 'identical' else 'a number of at least 0'}"
            raise ValueError(msg)
    known = known or Limits(0.0, 0.0, 0.0)
    named = {"largest": largest, "mean": mean, "identical": identical}
    kept = {name: value for name, value in named.items() if value is not None}
    return replace(known, **kept, given=frozenset(kept))  # type: ignore[arg-type] # numbers
