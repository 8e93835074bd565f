# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Plan a layer for the fewest activated slots on the busiest rank, where an expert's tokens are split over its copies.

A copy of an expert with c copies is active with the chance ``table[e, c − 1]``, which falls with c; all c together are active
more often the more they are. So copies cost: they are put where they cost least. ``expert_maps.reference.activated`` is the
same in plain loops; ``docs/objectives.md`` says why the bound is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]
    Int64Array = NDArray[np.int64]

_HAIR = 1e-9  # what a step gains less is rounding
_BISECTIONS = 40
# The limits on a copy that are tried, in units of the lower bound: a tight one levels what is most active, a loose one adds least.
_SLACKS = (1 + _HAIR, 1.05, 1.1)
_STEPS_PER_SLOT = 8  # a descent ends by itself long before; so it surely does


def most_copies(num_experts: int, num_ranks: int, num_slots: int) -> int:
    """Return C, the most copies that an expert can have: one a rank, and one slot for each other expert."""
    return min(num_ranks, num_slots - num_experts + 1)


def cheapest_counts(
    table: Float64Array, num_slots: int, limit: float = np.inf
) -> tuple[Int64Array, float] | None:
    """Give each expert the copies that keep it to a limit, and the rest to those whose copies add least.

    c copies of an expert activate c · table[e, c − 1] slots, which is concave in c: from the fewest copies to C it is nowhere
    below its chord. So no counts within the limit have a smaller sum than the cheapest chords, the last of them in part.

    Args:
        table: float64 [E, C].
        num_slots: P.
        limit: how active a copy may be at most.

    Returns:
        Counts, int64 [E], that add up to P, and a bound on the activated slots of all ranks together; None where there are
        not slots enough.
    """
    experts, most = table.shape
    fewest = (table > limit).sum(axis=1) + 1
    spare = num_slots - int(fewest.sum())
    if spare < 0 or fewest.max() > most:
        return None
    at = np.arange(experts)
    least = fewest * table[at, fewest - 1]
    room = most - fewest
    slope = np.divide(most * table[:, -1] - least, room, out=np.zeros(experts), where=room > 0)
    order = np.argsort(slope, kind="stable")
    before = np.cumsum(room[order]) - room[order]
    added = np.zeros(experts, dtype=np.int64)
    added[order] = np.clip(spare - before, 0, room[order])
    return fewest + added, float(least.sum() + (slope * added).sum())


def lower_bound(table: Float64Array, num_ranks: int, num_slots: int) -> float:
    """Return what no placement's busiest rank is below: float64 [E, C] in.

    To keep a rank to T, each copy must be within T less the smallest copies that can stand beside it; if the cheapest such
    counts add up to more than R · T, or need more than P slots, nothing keeps to T. And for each k, among k·R + 1 copies some
    rank holds k + 1: those of the smallest possible (k·R + 1)-th largest copy, beside the smallest copies there can be.
    """
    per_rank = num_slots // num_ranks
    smallest = np.concatenate([[0.0], np.cumsum(np.sort(table[:, -1]))])
    beside = float(smallest[per_rank - 1])

    def fails(limit: float) -> bool:
        found = cheapest_counts(table, num_slots, limit - beside)
        return found is None or found[1] > limit * num_ranks

    highest = float(table.max())
    bound = _largest(fails, 0.0, highest * per_rank)
    for k in range(1, per_rank):
        companions = float(smallest[per_rank - k - 1])
        too_many = lambda size: copies_above(table, size, num_slots) > k * num_ranks  # noqa: B023, E731
        low = max((bound - companions) / (k + 1), 0.0)
        bound = max(bound, (k + 1) * _largest(too_many, low, highest) + companions)
    return bound


def _largest(fails: Callable[[float], bool], low: float, high: float) -> float:
    """Return nearly the largest value that fails; 0 where not even the low one does."""
    if low >= high or not fails(low):
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if fails(middle):
            low = middle
        else:
            high = middle
    return low


def copies_above(table: Float64Array, chance: float, num_slots: int) -> int:
    """Return how many copies must be active with more than a chance, whatever the counts.

    An expert needs so many copies that each is at most that; those that need fewest are split first, the rest have one.
    """
    need = (table > chance).sum(axis=1)  # further copies, where C are enough
    need = need[need > 0]
    prices = np.sort(need[need < table.shape[1]])
    bought = int(np.searchsorted(np.cumsum(prices), num_slots - len(table), side="right"))
    return len(need) - bought


@dataclass
class State:
    """A layer while it is planned.

    Attributes:
        table: float64 [E, C].
        slots: int64 [R, S], the experts of each rank.
        count: int64 [E], copies of each expert.
        held: bool [R, E], whether a rank has an expert.
        load: float64 [R], the expected activated slots of each rank.
    """

    table: Float64Array
    slots: Int64Array
    count: Int64Array
    held: NDArray[np.bool_]
    load: Float64Array

    @classmethod
    def of(cls, table: Float64Array, slots: Int64Array) -> State:
        """Take a placement of a layer: int64 [R, S], no expert twice on a rank."""
        count = np.bincount(slots.ravel(), minlength=len(table))
        held = np.zeros((len(slots), len(table)), dtype=bool)
        np.put_along_axis(held, slots, values=True, axis=1)
        state = cls(table, slots.copy(), count, held, np.empty(len(slots)))
        state.weigh()
        return state

    def weigh(self) -> None:
        """Compute what each rank carries, from the slots: nothing is added up over steps, and no rounding with it."""
        self.load = self.share[self.slots].sum(axis=1)

    @property
    def share(self) -> Float64Array:
        """float64 [E], how likely a copy of each expert is active."""
        return self.table[np.arange(len(self.count)), self.count - 1]

    def put(self, rank: int, slot: int, expert: int) -> None:
        """Put an expert in place of another; `weigh` afterwards."""
        old = self.slots[rank, slot]
        self.held[rank, old], self.held[rank, expert] = False, True
        self.count[old] -= 1
        self.count[expert] += 1
        self.slots[rank, slot] = expert


def pack(table: Float64Array, count: Int64Array, num_ranks: int) -> Int64Array:
    """Place counts on ranks: int64 [R, S].

    The most active copies first, an expert's all at once on the ranks with most room, of those the least active: so room is
    always left for the copies of each expert on different ranks [Gale 1957; Ryser 1957].
    """
    per_rank = int(count.sum()) // num_ranks
    share = table[np.arange(len(count)), count - 1]
    slots = np.zeros((num_ranks, per_rank), dtype=np.int64)
    used, load = np.zeros(num_ranks, dtype=np.int64), np.zeros(num_ranks)
    for expert in np.argsort(-share, kind="stable").tolist():
        ranks = np.lexsort((load, used))[: count[expert]]
        slots[ranks, used[ranks]] = expert
        used[ranks] += 1
        load[ranks] += share[expert]
    return slots


def descend(state: State, target: float) -> None:
    """Lower the busiest rank until it is at most the target, or no single step lowers it.

    A step is the best swap of two slots; where none helps, the best change of one slot to another expert.
    """
    for _ in range(_STEPS_PER_SLOT * state.slots.size):
        rank = int(state.load.argmax())
        if state.load[rank] <= target:
            return
        limit = float(state.load[rank]) * (1 - _HAIR)
        if not (_swap(state, rank, limit) or _recount(state, rank, limit)):
            return
        state.weigh()


def _swap(state: State, rank: int, limit: float) -> bool:
    """Make the swap after which the hotter of both ranks is coolest, if it is below the limit."""
    weight = state.share[state.slots]  # [R, S]
    mine, theirs = state.slots[rank], state.slots
    falls = weight[rank][:, None, None] - weight[None]  # [own slot, R, their slot]
    hotter = np.maximum(state.load[rank] - falls, state.load[None, :, None] + falls)
    barred = state.held[:, mine].T[:, :, None] | state.held[rank][theirs][None]
    hotter[np.broadcast_to(barred, hotter.shape)] = np.inf
    best = int(hotter.argmin())
    if hotter.ravel()[best] >= limit:
        return False
    own, other, slot = (int(index) for index in np.unravel_index(best, hotter.shape))
    expert, incoming = int(mine[own]), int(theirs[other, slot])
    state.put(rank, own, incoming)
    state.put(other, slot, expert)
    return True


def _recount(state: State, rank: int, limit: float) -> bool:
    """Give a slot to another expert: one of this rank, or one elsewhere to an expert that this rank has.

    Of all those the one after which the hottest rank that it changes is coolest, if that is below the limit.
    """
    share, at, most = state.share, np.arange(len(state.count)), state.table.shape[1]
    rise = state.table[at, np.maximum(state.count - 2, 0)] - share
    fall = state.table[at, np.minimum(state.count, most - 1)] - share
    where, slot, gains = _recounts(state, rank)
    loses = state.slots[where, slot]
    # 1. What the rank of the slot and the busiest rank carry then; of most changes that is too much.
    at_slot = state.load[where] - share[loses] + share[gains] + fall[gains]
    of_rank = state.load[rank] + state.held[rank, loses] * rise[loses] + state.held[rank, gains] * fall[gains]
    fits = (at_slot < limit) & ((where == rank) | (of_rank < limit))
    where, slot, gains, loses, at_slot = (each[fits] for each in (where, slot, gains, loses, at_slot))
    if not where.size:
        return False
    # 2. Everywhere else the shares of both experts change too.
    has_either = state.held[:, loses] | state.held[:, gains]  # [R, changes]
    after = state.held[:, loses] * rise[loses] + state.held[:, gains] * fall[gains] + state.load[:, None]
    after[where, np.arange(len(where))] = at_slot
    worst = np.where(has_either, after, 0.0).max(axis=0)
    best = int(worst.argmin())
    if worst[best] >= limit:
        return False
    state.put(int(where[best]), int(slot[best]), int(gains[best]))
    return True


def _recounts(state: State, rank: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return changes of one slot to another expert: its rank, its place there, and the expert that it gets."""
    can_gain, can_lose = state.count < state.table.shape[1], state.count[state.slots] > 1
    # Slots of this rank, to every expert that it has not; then all others, to each expert that it has.
    own = np.nonzero(can_lose[rank])[0]
    others = np.nonzero(can_gain & ~state.held[rank])[0]
    can_lose[rank] = False
    where, slot = np.nonzero(can_lose)
    mine = state.slots[rank][can_gain[state.slots[rank]]]
    where, slot, gains = (
        np.concatenate(both)
        for both in (
            (np.full(len(own) * len(others), rank), np.repeat(where, len(mine))),
            (np.repeat(own, len(others)), np.repeat(slot, len(mine))),
            (np.tile(others, len(own)), np.tile(mine, len(where))),
        )
    )
    free = ~state.held[where, gains]
    return where[free], slot[free], gains[free]


def plan_layer(table: Float64Array, start: Int64Array, tolerance: float) -> tuple[Int64Array, float]:
    """Plan a layer.

    Args:
        table: float64 [E, C].
        start: int64 [R, S], a plan by tokens, which is kept where it is within the tolerance, or no worse.
        tolerance: stop at this gap.

    Returns:
        The placement, int64 [R, S]; and the lower bound on its busiest rank.
    """
    num_ranks, per_rank = start.shape
    # 1. What no placement is below, and whether the plan by tokens is there already.
    bound = lower_bound(table, num_ranks, start.size)
    best, target = State.of(table, start), bound * (1 + tolerance)
    beside = float(np.sort(table[:, -1])[: per_rank - 1].sum())
    tried: list[Int64Array] = []
    for slack in _SLACKS:
        if best.load.max() <= target:
            break
        # 2. Copies where they cost least, with no copy above a limit that is loosened.
        found = cheapest_counts(table, start.size, bound * slack - beside)
        if found is None or any(np.array_equal(found[0], count) for count in tried):
            continue
        tried.append(found[0])
        # 3. Pack them, and lower the busiest rank.
        state = State.of(table, pack(table, found[0], num_ranks))
        descend(state, target)
        if state.load.max() < best.load.max() * (1 - _HAIR):
            best = state
    return best.slots, bound
