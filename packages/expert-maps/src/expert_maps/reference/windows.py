# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Improve a plan for windows of the load in place of their sum. The twin of ``windows.c`` and ``reassign.c`` in ``native``.

In each window the ranks wait for its hottest one. That is taken smoothly: a window counts (Σ_ranks load³²)^(1/32), which is
its hottest load or a little more. A rank just below the hottest counts too: it may be the hottest in a window to come. The
compiled search leaves out what cannot be better, by bounds; here all is weighed. Numbers have 32 bits, as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_SQUARES = 5  # 2⁵ = 32
# Of the hottest rank's load: to the 32nd what is below counts as nothing, and must not underflow.
_FLOOR = np.float32(0.1)
# A step must lower the whole by more than this part.
_LEAST = np.float32(3e-5)
# Windows are added up in four sums, as processors do: beyond the last one come empty ones.
_LANES = 4


def power(load: Floats) -> Floats:
    """Return load³², as five squares."""
    result = np.maximum(load, _FLOOR)
    for _ in range(_SQUARES):
        result = result * result
    return result


def root(sums: Floats) -> Floats:
    """Return the 32nd root, as five square roots."""
    for _ in range(_SQUARES):
        sums = np.sqrt(sums)
    return sums


def _add_up(values: Floats) -> np.float32:
    """Add up what windows count, in four sums and 32 bits."""
    lanes = np.cumsum(values.reshape(-1, _LANES), axis=0, dtype=np.float32)[-1]
    total: np.float32 = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
    return total


class Change(NamedTuple):
    """A step: ``rank`` holds ``taken`` in place of ``given``; in a swap ``other`` holds ``given`` in place of ``taken``."""

    change: np.float32
    rank: int
    other: int
    given: int
    taken: int
    moves: int


@dataclass
class Windowed:
    """A layer's placement under the load of several windows.

    Attributes:
        weight: [E, windows], each expert's load in units of the window's mean rank load.
        tokens: [windows], in units of the mean window.
        slots: [R], the experts on each rank.
        ranks_per_node: experts stay on their node.
        was: [R], the experts that each rank held before; None without a placement in use.
        moves_left: as in `Layer`.
    """

    weight: Floats
    tokens: Floats
    slots: list[list[int]]
    ranks_per_node: int
    was: list[set[int]] | None = None
    moves_left: int | None = None
    count: list[int] = field(default_factory=list)
    load: list[Floats] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Count the copies, add up what ranks carry, and weigh it."""
        held = [expert for slots in self.slots for expert in slots]
        self.count = np.bincount(held, minlength=len(self.weight)).tolist()
        self.load = [np.zeros(0, dtype=np.float32)] * len(self.slots)
        self.order = list(range(len(self.slots)))
        for rank in range(len(self.slots)):
            self.add_up(rank)
        self.weigh()

    def share(self, expert: int) -> Floats:
        """Return what each copy carries in each window."""
        return self.weight[expert] / np.float32(self.count[expert])

    def add_up(self, rank: int) -> None:
        """Add up what a rank carries in each window."""
        load = np.zeros(len(self.tokens), dtype=np.float32)
        for expert in self.slots[rank]:
            load = load + self.share(expert)
        self.load[rank] = load

    def weigh(self) -> None:
        """Weigh the placement: what all ranks count, and which rank counts how much of it."""
        load = np.array(self.load)
        # 1. In units of a window's hottest rank no power overflows.
        top = load.max(axis=0)
        self.unit = np.divide(np.float32(1), top, out=np.zeros_like(top), where=top > 0)
        self.worth = self.tokens * top
        # 2. The powers, and their sums in 64 bits: a rank's power is taken out again where it changes.
        self.power = power(load * self.unit)
        self.sum = np.cumsum(self.power, axis=0, dtype=np.float64)[-1]
        counted = self.worth * root(self.sum.astype(np.float32))
        self.value = _add_up(counted)
        # 3. The ranks, from the one that counts least.
        part = counted * (self.power / self.sum.astype(np.float32))
        total = np.cumsum(part, axis=1, dtype=np.float32)[:, -1]
        self.order = sorted(self.order, key=total.__getitem__)

    def counted(self, sums: NDArray[np.float64]) -> np.float32:
        """Return what windows count whose ranks' powers have these sums."""
        return _add_up(self.worth * root(np.maximum(sums, 0).astype(np.float32)))

    def node(self, rank: int) -> range:
        """Return the ranks of a rank's node."""
        first = rank // self.ranks_per_node * self.ranks_per_node
        return range(first, first + self.ranks_per_node)

    def arrival(self, rank: int, expert: int) -> int:
        """Return the moves that it costs to bring an expert to a rank."""
        return int(self.was is not None and expert not in self.was[rank])

    def may_move(self, moves: int) -> bool:
        """Whether that many moves are left."""
        return self.moves_left is None or moves <= self.moves_left


def windowed(load: NDArray[np.float64], slots: list[list[int]], ranks_per_node: int) -> Windowed:
    """Take a plan under windows of the load, [windows, E]."""
    mean = np.array([np.cumsum(window)[-1] for window in load]) / len(slots)
    total = np.cumsum(mean)[-1]
    weight = np.divide(load, mean[:, None], out=np.zeros_like(load), where=mean[:, None] > 0)
    tokens = mean.astype(np.float32).astype(np.float64) * len(load)
    tokens = tokens / total if total > 0 else np.zeros(len(load))
    empty = -len(load) % _LANES
    weight, tokens = np.pad(weight, ((0, empty), (0, 0))), np.pad(tokens, (0, empty))
    return Windowed(weight.T.astype(np.float32), tokens.astype(np.float32), slots, ranks_per_node)


def descend_windows(p: Windowed) -> None:
    """Improve the ranks, the one that counts most first, until no swap and no other split of the copies helps."""
    for _ in range(20 * len(p.slots) + 200):
        # 1. A swap of one of the ranks, from the one that counts most; 2. without any, another split of the copies.
        best = _first_step(p, _best_swap) or _first_step(p, _best_reassignment)
        if best is None:
            return
        _apply(p, best)


def _first_step(p: Windowed, find: Callable[[Windowed, int], Change | None]) -> Change | None:
    for rank in reversed(p.order):
        found = find(p, rank)
        if found is not None:
            return found
    return None


def _best_swap(p: Windowed, hot: int) -> Change | None:
    """Return the swap with another rank of the node that lowers the whole most, None where none does."""
    limit, best = -_LEAST * p.value, None
    for cold in p.order:
        if cold == hot or cold not in p.node(hot):
            continue
        own = p.power[hot].astype(np.float64) + p.power[cold]
        others = np.maximum(p.sum - own, 0).astype(np.float32)
        for given in p.slots[hot]:
            for taken in p.slots[cold]:
                if given in p.slots[cold] or taken in p.slots[hot]:
                    continue
                difference = p.share(given) - p.share(taken)
                hotter, colder = p.load[hot] - difference, p.load[cold] + difference
                sums = others + (power(hotter * p.unit) + power(colder * p.unit))
                change = p.counted(sums) - p.value
                if change >= limit:
                    continue
                moves = p.arrival(hot, taken) - p.arrival(hot, given)
                moves += p.arrival(cold, given) - p.arrival(cold, taken)
                if p.may_move(moves):
                    limit, best = change, Change(change, hot, cold, given, taken, moves)
    return best


def _best_reassignment(p: Windowed, hot: int) -> Change | None:
    """Return the best other split: the rank gives a copy up, or one of its experts gets a copy elsewhere in the node."""
    steps: list[tuple[int, int, int]] = []  # rank, given, taken
    for expert in p.slots[hot]:
        if p.count[expert] > 1:
            steps += [(hot, expert, taken) for taken in range(len(p.weight))]
        steps += [(rank, given, expert) for rank in p.node(hot) if rank != hot for given in p.slots[rank]]
    limit, best = -_LEAST * p.value, None
    for rank, given, taken in steps:
        if p.count[given] < 2 or taken in p.slots[rank]:  # noqa: PLR2004 - the last copy stays
            continue
        if not any(taken in p.slots[other] for other in p.node(rank)):
            continue  # an expert of another node
        moves = p.arrival(rank, taken) - p.arrival(rank, given)
        if not p.may_move(moves):
            continue
        change = _reassigned(p, rank, given, taken)
        if change < limit:
            limit, best = change, Change(change, rank, rank, given, taken, moves)
    return best


def _reassigned(p: Windowed, rank: int, given: int, taken: int) -> np.float32:
    """Return the change of the whole if a rank held ``taken`` in place of ``given``."""
    one, zero = np.float32(1), np.float32(0)
    keep = np.float32(p.count[given]) / np.float32(p.count[given] - 1) - one
    cut = np.float32(p.count[taken]) / np.float32(p.count[taken] + 1)
    sums = p.sum
    for other in p.node(rank):
        has_given, has_taken = given in p.slots[other], taken in p.slots[other]
        if other != rank and not has_given and not has_taken:
            continue
        rise = -one if other == rank else keep if has_given else zero
        gain = cut if other == rank else cut - one if has_taken else zero
        load = p.load[other] + rise * p.share(given) + gain * p.share(taken)
        sums = sums + (power(load * p.unit).astype(np.float64) - p.power[other])
    return p.counted(sums) - p.value


def _apply(p: Windowed, step: Change) -> None:
    if p.moves_left is not None:
        p.moves_left -= step.moves
    slots, other = p.slots[step.rank], p.slots[step.other]
    slots[slots.index(step.given)] = step.taken
    if step.rank != step.other:
        other[other.index(step.taken)] = step.given
        p.add_up(step.rank)
        p.add_up(step.other)
        p.weigh()
        return
    p.count[step.given] -= 1
    p.count[step.taken] += 1
    for rank, held in enumerate(p.slots):
        if rank == step.rank or step.given in held or step.taken in held:
            p.add_up(rank)
    p.weigh()
