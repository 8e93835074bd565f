# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`schedule`: from one placement to another in rounds, every expert served all the time."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.metrics import check_alike
from expert_maps.migration.needs import find_needs
from expert_maps.migration.result import Schedule, as_nodes
from expert_maps.migration.rounds import Migration, Way
from expert_maps.placement import as_placement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from expert_maps.migration.needs import Needs
    from expert_maps.placement import Placement, PlacementLike

# Small migrations are tried in several ways: so many transfers in all, and so many ways at most.
_TRIED_TRANSFERS = 4000
_MOST_WAYS = 16


def schedule(before: PlacementLike, after: PlacementLike, *, num_nodes: int = 1) -> Schedule:
    """Plan how to go from one placement to another while both serve.

    1. A slot whose expert is on its rank already is filled there. Each rank gets each expert that it lacks once.
    2. It comes from the nearest rank that holds it at the time: of the same node, where one does. A node that lacks an expert
       gets it once from elsewhere, whatever number of its ranks get it.
    3. A copy that is to go may be replaced once another one is there, and on its node if ranks of the node still lack it.
    4. In each round the ranks with most left to do come first. Ranks of which none has a slot that may be replaced form
       cycles, in which each sends to the next what it is about to replace.

    Such a schedule always exists, whether there are copies to spare or not. It is the same for the same input.

    Args:
        before: the placement in use, or a result.
        after: the placement to go to, or a result, of the same counts.
        num_nodes: servers that the ranks are spread over, in order; must divide R.

    Raises:
        ExpertMapsError: the counts differ, or the nodes do not divide the ranks.
    """
    old, new = as_placement(before, "before"), as_placement(after, "after")
    check_alike(old, new)
    nodes = as_nodes(num_nodes, old.ep_size)
    needs = find_needs(old, new, nodes)
    best = _fewest_rounds(needs)
    slots = old.num_physical_experts
    rounds, numbers, sources, targets = np.array(best or np.zeros((0, 4)), dtype=np.int64).reshape(-1, 4).T
    experts = np.array([need.expert for need in needs.all], dtype=np.int32)
    layers, source = np.divmod(sources, slots)
    target = targets % slots
    now = old.physical_to_logical.copy()
    now[layers, target] = experts[numbers]
    return Schedule(
        old,
        new,
        nodes,
        round=rounds.astype(np.int32),
        layer=layers.astype(np.int32),
        expert=experts[numbers],
        source=source.astype(np.int32),
        target=target.astype(np.int32),
        local=_local_copies(now, new),
        lower_bound=needs.lower_bound,
    )


def _fewest_rounds(needs: Needs) -> list[tuple[int, int, int, int]]:
    """Return the transfers of the way with fewest rounds: round, number of the need, slot that is read, slot replaced."""
    total = sum(need.lacking.bit_count() for need in needs.all)
    best: list[tuple[int, int, int, int]] = []
    for way in _ways(min(max(_TRIED_TRANSFERS // max(total, 1), 1), _MOST_WAYS)):
        tried = Migration(needs, way)
        # What takes as many rounds as the best one is no better.
        while tried.left and (not best or tried.num_rounds < best[-1][0]):
            tried.next_round()
        if not tried.left:
            best = tried.records
        if not best or best[-1][0] + 1 <= needs.lower_bound:
            break
    return best


def _ways(count: int) -> Iterator[Way]:
    for number in range(count):
        yield Way(number % 2 == 1, Random(number) if number > 1 else None)  # noqa: S311 - no secret


def _local_copies(now: NDArray[np.int32], after: Placement) -> NDArray[np.int32]:
    """Return what must still be copied within ranks, int32 [C, 3]: layer, slot that is read, slot that is replaced."""
    layers, slots = np.nonzero(now != after.physical_to_logical)
    cells = after.ep_size * after.num_logical_experts
    concerned = np.unique(layers)
    rank = after.slot_rank.astype(np.int64) * after.num_logical_experts
    held = (concerned[:, None] * cells + rank + now[concerned]).ravel()
    wanted = layers * cells + rank[slots] + after.physical_to_logical[layers, slots]
    order = np.argsort(held, kind="stable")
    found = order[np.searchsorted(held[order], wanted)]
    return np.stack([layers, found % max(now.shape[1], 1), slots], axis=1).astype(np.int32)
