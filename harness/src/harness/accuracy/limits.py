# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How far answers and log-probabilities may differ by rounding alone, by dtype.

Measured on a trained Qwen3-MoE of 2 M parameters (4 layers, 16 experts + 8 replicas on 4 ranks, top-4), which knows its
task well (mean log-probability −0.006), with forced continuations. |Δ| is the difference to the placement without
replicas.

| | float32 largest | mean | float16 largest | mean | bfloat16 largest | mean |
|---|---|---|---|---|---|---|
| harmless: each rank adds up its part | 6.9e-6 | 6e-9 | 1.5e-2 | 1.1e-5 | 7.9e-2 | 9e-5 |
| 5 % noise in a replica, first layer | 5.6e-2 | 3.2e-5 | 5.6e-2 | 4.1e-5 | 2.0e-1 | 1.4e-4 |
| 5 % noise in a replica, second layer | 7.1e-4 | 1.3e-7 | as harmless | as harmless | as harmless | as harmless |
| 5 % noise in a replica, last layer | 5.7e-5 | 5.0e-8 | as harmless | as harmless | as harmless | as harmless |
| a replica zeroed | 4.7 | 1.3e-3 | 4.6 | 1.3e-3 | 4.6 | 1.4e-3 |
| a replica with a neighbour's weights | 3.5 | 1.3e-3 | 3.5 | 1.3e-3 | 3.6 | 1.3e-3 |

So float32 sees small faults that the rounding of 16 bits hides; those are left to the checksums of the replicas. Each
limit stands between harmless and the smallest fault that this dtype shows. A deeper or less certain model rounds
further: measure the baseline against itself (`compare A A2 --repeat`) and give limits of its own.

Identical texts: 400 of 400 (float32), 1,317 of 1,319 (bfloat16) where nothing was wrong; 380 of 400 with a
neighbour's weights.
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
    """

    largest: float
    mean: float
    identical: float


LIMITS = {
    "float32": Limits(largest=5e-5, mean=1e-7, identical=0.995),
    "float16": Limits(largest=3e-2, mean=3e-5, identical=0.99),
    "bfloat16": Limits(largest=1.25e-1, mean=3e-4, identical=0.99),
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
    return Limits(
        largest=known.largest if largest is None else largest,
        mean=known.mean if mean is None else mean,
        identical=known.identical if identical is None else identical,
    )
