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

Rounding moves a token that the model is sure of by next to nothing: the mean |Δ| is 2.4e-6 … 4.2e-6 of the mean of 1 − p, on
its own task (mean of 1 − p: 2.7e-4) as on GSM8K, which it does not know (4.8e-2; |Δ| at most 1.5e-5, mean 1.7e-7). So the
limit of the mean grows with the baseline's mean of 1 − p, and that of the largest with the logarithm of the sum of 1 − p,
as the largest of so many does: see `Limits.of`. In bfloat16 the mean |Δ| was 0.067 of the mean of 1 − p on GSM8K, and the
largest 0.68, where rounding had turned a choice of experts: there the largest limit grows with the square root. In float16 the
same was not measured; a tenth of it is allowed. A deeper model rounds further: measure the baseline against itself
(`compare A A2 --repeat`) and give limits of its own, which are taken as they are.

Identical texts: all of 1,319 (float32) and 1,317 of them (bfloat16) where nothing was wrong; 34 to 100 % with a
neighbour's weights, by the layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What rounding explains.

    Attributes:
        largest: of |Δ log-probability| of a token.
        mean: of |Δ log-probability| over tokens.
        identical: share of texts that stay the same, in [0, 1].
        scaled: which of the first two grow with how unsure a model is; none that a user gave.
        slope: of the mean, for each unit of the baseline's mean of 1 − p.
        turns: whether rounding may turn a choice of experts, and then changes a token by much.
    """

    largest: float
    mean: float
    identical: float
    scaled: frozenset[str] = frozenset({"largest", "mean"})
    slope: float = 0.0
    turns: bool = True

    def of(self, name: str, unsure: float, tokens: int) -> float:
        """Return a limit of |Δ log-probability| for a baseline that is less sure than the embedded model.

        Args:
            name: ``largest`` or ``mean``.
            unsure: mean of 1 − p over the baseline's tokens.
            tokens: how many they are.
        """
        bound = float(getattr(self, name))
        if name not in self.scaled:
            return bound
        if name == "mean":
            return max(bound, self.slope * unsure)
        if self.turns:
            return bound * max(1.0, math.sqrt(unsure / _UNSURE))
        return bound * max(1.0, math.log(max(1.0, unsure * tokens)) / math.log(_UNSURE * _TOKENS))


# Of the embedded model on its 1,319 questions.
_UNSURE, _TOKENS = 2.66e-4, 41279
LIMITS = {
    "float32": Limits(largest=2e-5, mean=2e-8, identical=0.995, slope=7.5e-5, turns=False),
    "float16": Limits(largest=3e-2, mean=3e-5, identical=0.99, slope=0.02),
    "bfloat16": Limits(largest=1.25e-1, mean=3e-4, identical=0.99, slope=0.2),
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
    fixed = {name for name, value in (("largest", largest), ("mean", mean)) if value is not None}
    return Limits(
        largest=known.largest if largest is None else largest,
        mean=known.mean if mean is None else mean,
        identical=known.identical if identical is None else identical,
        scaled=known.scaled - fixed,
        slope=known.slope,
        turns=known.turns,
    )
