# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Planning a layer by activated slots, in plain loops. The twin of ``expert_maps.policies.activated``.

``table[e][c − 1]`` is how likely a batch of decode activates one copy of expert e, if it has c.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from expert_maps.reference.layer import add_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Table = Sequence[Sequence[float]]
    Slots = list[list[int]]

_HAIR = 1e-9
_BISECTIONS = 40
_SLACKS = (1 + _HAIR, 1.05, 1.1)


def chance_of_share(share: float, tokens: int, top_k: int, copies: int) -> float:
    """Return how likely a copy is active, of an expert with a share of the load: some of the tokens go there.

    A token has ``top_k`` experts, so it chooses this one with the chance ``share · top_k``, and this copy with one of
    ``copies`` times that. None of the tokens does with the chance (1 − that)^tokens.
    """
    return 1 - (1 - min(share * top_k, 1.0) / copies) ** tokens


def chance_of_batches(tokens: Sequence[int], copies: int) -> float:
    """Return how often a copy is active, of an expert to which so many tokens of each batch went."""
    return add_up(1 - (1 - 1 / copies) ** count for count in tokens) / len(tokens)


def cheapest_counts(table: Table, num_slots: int, limit: float = math.inf) -> tuple[list[int], float] | None:
    """Return counts that keep copies to a limit and add least, and a bound on what all ranks activate; None: no such."""
    most = len(table[0])
    # 1. The copies that each expert needs.
    count = [1 + sum(chance > limit for chance in row) for row in table]
    spare = num_slots - sum(count)
    if spare < 0 or max(count) > most:
        return None
    total = add_up(copies * row[copies - 1] for row, copies in zip(table, count, strict=True))
    # 2. What one more adds at least: the slope of the chord from there to as many as can be.
    slope = [
        (most * row[-1] - copies * row[copies - 1]) / (most - copies) if copies < most else 0.0
        for row, copies in zip(table, count, strict=True)
    ]
    # 3. The cheapest first.
    for expert in sorted(range(len(table)), key=lambda expert: slope[expert]):
        added = min(spare, most - count[expert])
        count[expert] += added
        total += slope[expert] * added
        spare -= added
    return count, total


def copies_above(table: Table, chance: float, num_slots: int) -> int:
    """Return how many copies must be active with more than a chance, whatever the counts."""
    most, budget = len(table[0]), num_slots - len(table)
    needs = [sum(each > chance for each in row) for row in table]
    left = sum(need > 0 for need in needs)
    for price in sorted(need for need in needs if 0 < need < most):
        if price > budget:
            break
        budget -= price
        left -= 1
    return left


def lower_bound(table: Table, num_ranks: int, num_slots: int) -> float:
    """Return what no placement's busiest rank is below."""
    per_rank = num_slots // num_ranks
    smallest = sorted(row[-1] for row in table)
    highest = max(max(row) for row in table)

    # 1. To keep to a limit each copy needs room for the smallest copies beside it, and all ranks have R limits of room.
    def fails(limit: float) -> bool:
        found = cheapest_counts(table, num_slots, limit - add_up(smallest[: per_rank - 1]))
        return found is None or found[1] > limit * num_ranks

    bound = largest(fails, 0.0, highest * per_rank)
    # 2. Among k·R + 1 copies some rank holds k + 1, beside other copies.
    for k in range(1, per_rank):
        companions = add_up(smallest[: per_rank - k - 1])

        def too_many(chance: float, k: int = k) -> bool:
            return copies_above(table, chance, num_slots) > k * num_ranks

        low = max((bound - companions) / (k + 1), 0.0)
        bound = max(bound, (k + 1) * largest(too_many, low, highest) + companions)
    return bound


def largest(fails: Callable[[float], bool], low: float, high: float) -> float:
    """Return nearly the largest value that fails, by halving; 0 where the low one does not."""
    if low >= high or not fails(low):
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if fails(middle):
            low = middle
        else:
            high = middle
    return low


def pack(table: Table, count: Sequence[int], num_ranks: int) -> Slots:
    """Place the most active first, all copies of an expert on the ranks with most room, of those the least active."""
    slots: Slots = [[] for _ in range(num_ranks)]
    load = [0.0] * num_ranks
    for expert in sorted(range(len(table)), key=lambda expert: -table[expert][count[expert] - 1]):
        ranks = sorted(range(num_ranks), key=lambda rank: (len(slots[rank]), load[rank]))
        for rank in ranks[: count[expert]]:
            slots[rank].append(expert)
            load[rank] += table[expert][count[expert] - 1]
    return slots


def loads(table: Table, slots: Slots) -> list[float]:
    """Return what each rank is expected to activate."""
    held = [expert for of_rank in slots for expert in of_rank]
    share = [row[held.count(expert) - 1] for expert, row in enumerate(table)]
    return [add_up(share[expert] for expert in of_rank) for of_rank in slots]


def descend(table: Table, slots: Slots, target: float) -> None:
    """Lower the busiest rank, step by step, in place: the best swap; where none helps, the best change of one slot."""
    while True:
        load = loads(table, slots)
        busiest = max(load)
        if busiest <= target:
            return
        rank = load.index(busiest)
        limit = busiest * (1 - _HAIR)
        if not (_swap(table, slots, rank, limit) or _recount(table, slots, rank, limit)):
            return


def _swap(table: Table, slots: Slots, rank: int, limit: float) -> bool:
    load = loads(table, slots)
    held = [expert for of_rank in slots for expert in of_rank]
    share = [row[held.count(expert) - 1] for expert, row in enumerate(table)]
    best: tuple[int, int, int] | None = None
    for own, expert in enumerate(slots[rank]):
        for other, of_rank in enumerate(slots):
            for place, incoming in enumerate(of_rank):
                if expert in of_rank or incoming in slots[rank]:
                    continue
                fall = share[expert] - share[incoming]
                hotter = max(load[rank] - fall, load[other] + fall)
                if hotter < limit:
                    limit, best = hotter, (own, other, place)
    if best is None:
        return False
    own, other, place = best
    slots[rank][own], slots[other][place] = slots[other][place], slots[rank][own]
    return True


def _recount(table: Table, slots: Slots, rank: int, limit: float) -> bool:
    held = [expert for of_rank in slots for expert in of_rank]
    count = [held.count(expert) for expert in range(len(table))]
    own = [(rank, place, expert) for place in range(len(slots[rank])) for expert in range(len(table))]
    elsewhere = [
        (where, place, expert)
        for where in range(len(slots))
        for place in range(len(slots[where]))
        for expert in slots[rank]
        if where != rank
    ]
    load = loads(table, slots)
    best: tuple[int, int, int] | None = None
    for where, place, gains in own + elsewhere:
        loses = slots[where][place]
        if count[loses] < 2 or count[gains] == len(table[0]) or gains in slots[where]:  # noqa: PLR2004
            continue
        # Try it; every rank that has either expert changes.
        slots[where][place] = gains
        after = loads(table, slots)
        slots[where][place] = loses
        changed = [each for each, of_rank in enumerate(slots) if loses in of_rank or gains in of_rank]
        hottest = max(after[each] for each in {*changed, rank})
        if hottest < limit - _HAIR * load[rank]:
            limit, best = hottest, (where, place, gains)
    if best is None:
        return False
    where, place, gains = best
    slots[where][place] = gains
    return True


def plan_layer(table: Table, start: Slots, tolerance: float) -> tuple[Slots, float]:
    """Return a placement of a layer, and the bound on its busiest rank; arguments as of the twin."""
    num_ranks, num_slots = len(start), sum(map(len, start))
    bound = lower_bound(table, num_ranks, num_slots)
    target = bound * (1 + tolerance)
    beside = add_up(sorted(row[-1] for row in table)[: num_slots // num_ranks - 1])
    best = start
    tried: list[list[int]] = []
    for slack in _SLACKS:
        if max(loads(table, best)) <= target:
            break
        found = cheapest_counts(table, num_slots, bound * slack - beside)
        if found is None or found[0] in tried:
            continue
        tried.append(found[0])
        slots = pack(table, found[0], num_ranks)
        descend(table, slots, target)
        if max(loads(table, slots)) < max(loads(table, best)) * (1 - _HAIR):
            best = slots
    return best, bound
