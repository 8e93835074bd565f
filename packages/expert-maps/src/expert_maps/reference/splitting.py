# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The best split of every expert's tokens over its copies. The twin of ``native/split.c``, by trying all sets of ranks.

If some experts X have all their copies on the ranks N(X), one of these carries load(X) / |N(X)| or more. The largest such
ratio is also reached, and then those ranks carry exactly it. What is left is a smaller problem of the same kind.
"""

from __future__ import annotations

from itertools import combinations


def level_ranks(load: list[float], holders: list[list[int]], num_ranks: int) -> list[float]:
    """Return what each rank carries under the most level split, [R].

    The compiled planner finds the sets by maximum flows (Dinic, 1970; Dinkelbach, 1967), in place of trying all 2^R.

    Args:
        load: [E], the tokens of each expert.
        holders: [E], the ranks of its copies.
        num_ranks: R, a dozen at most.
    """
    found = [0.0] * num_ranks
    open_ranks = set(range(num_ranks))
    places = {expert: frozenset(ranks) for expert, ranks in enumerate(holders) if load[expert] > 0}
    while places:
        # 1. The set of ranks that those experts load most which can go nowhere else; of equal ones, the largest.
        best, hottest = 0.0, frozenset[int]()
        for size in range(1, len(open_ranks) + 1):
            for ranks in map(frozenset, combinations(sorted(open_ranks), size)):
                inside = sum(load[expert] for expert, on in places.items() if on <= ranks)
                if inside / size >= best * (1 - 1e-12):
                    best, hottest = max(best, inside / size), ranks
        # 2. Those carry the ratio; they and their experts are settled.
        for rank in hottest:
            found[rank] = best
        open_ranks -= hottest
        places = {expert: on - hottest for expert, on in places.items() if not on <= hottest}
    return found
