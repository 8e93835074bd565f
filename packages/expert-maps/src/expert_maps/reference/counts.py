# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many copies every expert gets. The twin of ``replicate`` in ``native/pack.c``.

Source: DeepSeek EPLB's rule; as an apportionment of seats it is Adams' method (Balinski and Young, 1982).
"""

from __future__ import annotations

import numpy as np


def replicate(weight: list[float], num_ranks: int, num_slots: int) -> list[int]:
    """Give each further copy to the expert whose copies carry most.

    No other counts have a smaller largest share: whoever has the largest share needs the next copy, or it stays.

    Args:
        weight: [E], the load of each expert.
        num_ranks: R; an expert has at most a copy on each.
        num_slots: P ≥ E, at most E · R.

    Returns:
        [E], the copies of each expert; they add up to P.
    """
    load = np.asarray(weight, dtype=np.float64)
    # 1. One copy each.
    count = np.ones(len(load), dtype=np.int64)
    left = num_slots - len(load)
    # 2. Each further copy where the share is largest; of equal ones, to the first.
    while left > 0:
        share = np.where(count < num_ranks, load / count, 0.0)
        expert = int(np.argmax(share))
        if share[expert] <= 0:
            break
        count[expert] += 1
        left -= 1
    # 3. No load is left that could be divided: copies go round.
    expert = 0
    while left > 0:
        if count[expert] < num_ranks:
            count[expert] += 1
            left -= 1
        expert = (expert + 1) % len(load)
    return count.tolist()
