# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A new plan's ranks take the names under which most stays. The twin of ``native/relabel.c``.

An assignment problem (Kuhn, 1955; Munkres, 1957). Several assignments can be as good: both keep as many copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Ranks of other sizes cannot take each other's names.
_FORBIDDEN = -(2**20)


def assign(gain: NDArray[np.int64]) -> list[int]:
    """Return the column of each row so that the gains add up to most: [n] from [n, n].

    Rows are added one by one. Each enters along the path of swaps that costs the matching least: the shortest path, by
    Bellman and Ford, from the row to a column that is free.
    """
    n = len(gain)
    column_of, row_of = [-1] * n, [-1] * n
    for row in range(n):
        # 1. What it costs to free each column for this row, by whatever other rows move.
        cost, came_from = (-gain[row]).tolist(), [row] * n
        for _ in range(n):
            for column in range(n):
                other = row_of[column]
                if other < 0:
                    continue
                for next_ in range(n):
                    through = cost[column] + int(gain[other, column] - gain[other, next_])
                    if next_ != column and through < cost[next_]:
                        cost[next_], came_from[next_] = through, other
        # 2. The cheapest free column, and back along the path.
        column = min((c for c in range(n) if row_of[c] < 0), key=cost.__getitem__)
        while column >= 0:
            mover = came_from[column]
            left = column_of[mover]
            column_of[mover], row_of[column] = column, mover
            column = left
    return column_of


def names(
    new: Sequence[Sequence[int]], old: Sequence[Sequence[int]], capacity: Sequence[int], num_nodes: int
) -> list[int]:
    """Return the name of each new rank, [R]: ranks change names within their node, and nodes as wholes.

    Args:
        new: [R], the experts on each new rank.
        old: [R], the experts that each rank holds now.
        capacity: [R], the slots of each rank.
        num_nodes: divides R.
    """
    ranks, size = len(new), len(new) // num_nodes
    # 1. How many copies stay if a rank takes another's name.
    stays = np.array([[len(set(a) & set(b)) for b in old] for a in new], dtype=np.int64)
    sizes = np.asarray(capacity)
    stays[sizes[:, None] != sizes] = _FORBIDDEN
    # 2. For each two nodes: the best names if one takes the other's place.
    within: dict[tuple[int, int], list[int]] = {}
    nodes = np.zeros((num_nodes, num_nodes), dtype=np.int64)
    for a in range(num_nodes):
        for b in range(num_nodes):
            part = stays[a * size : (a + 1) * size, b * size : (b + 1) * size]
            within[a, b] = assign(part)
            nodes[a, b] = max(part[np.arange(size), within[a, b]].sum(), _FORBIDDEN)
    # 3. Which node takes which.
    place = assign(nodes)
    return [
        place[rank // size] * size + within[rank // size, place[rank // size]][rank % size]
        for rank in range(ranks)
    ]


def relabel(
    new: Sequence[Sequence[int]], old: Sequence[Sequence[int]], capacity: Sequence[int], num_nodes: int
) -> list[int]:
    """Return which new rank gets each name, [R]: the inverse of `names`."""
    return np.argsort(names(new, old, capacity, num_nodes)).tolist()


def keep_places(slots: Sequence[int], held: Sequence[int]) -> list[int]:
    """Order a rank's slots so that what stays keeps its slot, as far as the rank still has it; −1 is an empty slot."""
    placed = list(slots)
    for i, expert in enumerate(held[: len(placed)]):
        if expert >= 0 and expert in placed:
            j = placed.index(expert)
            placed[i], placed[j] = placed[j], placed[i]
    return placed
