# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Round after round of a migration: who sends what to whom, and which slot it replaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_maps.migration.matching import Pairing, find_cycles, members
from expert_maps.migration.need import sources
from expert_maps.migration.offers import Offers

if TYPE_CHECKING:
    from random import Random

    from expert_maps.migration.needs import Needs


@dataclass(frozen=True)
class Way:
    """One way to go about it.

    Attributes:
        cycles_first: whether ranks that have no free slot are served before the others.
        noise: breaks ties, and a little more; None for the order of the ranks.
    """

    cycles_first: bool = False
    noise: Random | None = None


Send = tuple[int, int, int]
"""What is sent: sender, receiver, number of the need."""

Record = tuple[int, int, int, int]
"""What was sent: round, number of the need, slot that was read, slot that was replaced; slots of all layers, [0, L · P)."""


class Migration:
    """A migration on its way; its state belongs to it.

    A rank that lacks an expert of a layer can get it while it has a free slot there, or if it sends away, in the same round, a
    copy that it had to keep. The spare slot takes what arrives; at the end of the round it is copied to the slot.
    """

    def __init__(self, needs: Needs, way: Way) -> None:
        """Begin: nothing has been sent."""
        self._needs, self._ranks, self._way = needs, needs.ranks, way
        self._all = needs.all
        count = self._ranks.count
        self._holders = [need.holders for need in needs.all]
        self._lacking = [need.lacking for need in needs.all]
        self._kept = [dict(need.kept) for need in needs.all]
        self._first = [dict(need.first) for need in needs.all]
        self._slot_of = dict(needs.slot_of)
        self._need_in = {slot: (number, rank) for (number, rank), slot in needs.slot_of.items()}
        self._free = {key: list(slots) for key, slots in needs.free.items()}
        # Layer and rank, where that has a free slot and still gets something.
        self._open: set[tuple[int, int]] = set()
        self._offers = Offers(count)
        # What each rank still gets, has to keep for now, and has to send first.
        self._wants: dict[tuple[int, int], dict[int, None]] = {}
        self._keeps: dict[tuple[int, int], dict[int, None]] = {}
        self._left_in, self._left_out = [0] * count, [0] * count
        self._both: dict[int, int] = {}  # layer → ranks that get something there, and have to keep something
        self._left_of: dict[int, int] = {}  # layer → what is still to be sent
        self.left = 0
        self.records: list[Record] = []
        self.num_rounds = 0
        self._begin()

    def _begin(self) -> None:
        for number, need in enumerate(self._all):
            for rank in members(need.lacking):
                self._wants.setdefault((need.layer, rank), {})[number] = None
                self._left_in[rank] += 1
                self.left += 1
                self._left_of[need.layer] = self._left_of.get(need.layer, 0) + 1
            for rank in need.kept:
                self._keeps.setdefault((need.layer, rank), {})[number] = None
            for rank in need.first:
                self._left_out[rank] += 1
        for key in self._wants:
            self._free.setdefault(key, [])
            self._note_both(key)
            if self._free[key]:
                self._open.add(key)
                for number in self._wants[key]:
                    self._offer(number, key[1])

    def _note_both(self, key: tuple[int, int]) -> None:
        layer, rank = key
        both = self._both.get(layer, 0) & ~(1 << rank)
        if self._wants.get(key) and self._keeps.get(key):
            both |= 1 << rank
        self._both[layer] = both

    # What is offered.

    def _sources(self, number: int, receiver: int) -> int:
        return sources(self._ranks, self._holders[number], self._lacking[number], receiver)

    def _offer(self, number: int, receiver: int) -> None:
        """Offer an expert to a rank from those that may send it, if the rank can take it, and from nobody else."""
        senders = 0
        if self._lacking[number] >> receiver & 1 and (self._all[number].layer, receiver) in self._open:
            senders = self._sources(number, receiver)
        self._offers.offer(number, receiver, senders)

    # A round.

    def next_round(self) -> None:
        """Choose what is sent in a round, and send it.

        Raises:
            AssertionError: nothing can be sent though something is left to be; it cannot be.
        """
        sends: list[Send] = []
        idle_senders = idle_receivers = self._ranks.every
        urgent_in, urgent_out = self._urgency()
        both = [max(pair) for pair in zip(urgent_in, urgent_out, strict=True)]
        for cycles in (self._way.cycles_first, not self._way.cycles_first):
            if cycles:
                more = self._cycles(idle_senders & idle_receivers, both)
            else:
                more = self._pairs(idle_senders, idle_receivers, urgent_in, urgent_out)
            for sender, receiver, _ in more:
                idle_senders ^= 1 << sender
                idle_receivers ^= 1 << receiver
            sends += more
        if not sends:
            msg = f"a migration comes to a halt in round {self.num_rounds} with {self.left} transfers left"
            raise AssertionError(msg)
        self._follow(sends, idle_senders, idle_receivers)
        self._send(sends)
        self.num_rounds += 1

    def _urgency(self) -> tuple[list[float], list[float]]:
        noise = self._way.noise
        if noise is None:
            return [float(left) for left in self._left_in], [float(left) for left in self._left_out]
        return (
            [left + noise.random() * 1.5 for left in self._left_in],
            [left + noise.random() * 1.5 for left in self._left_out],
        )

    def _pairs(
        self, senders: int, receivers: int, urgent_in: list[float], urgent_out: list[float]
    ) -> list[Send]:
        """Match as many ranks that have a free slot as can be, the most urgent ones in any case."""
        pairing = Pairing(self._offers.gets, self._offers.gives, senders, receivers)
        asking = [rank for rank in members(receivers) if self._offers.gets[rank]]
        for rank in sorted(asking, key=urgent_in.__getitem__, reverse=True):
            pairing.add_receiver(rank, urgent_out)
        critical = max(*urgent_in, *urgent_out) - 1
        for rank in members(senders):
            if urgent_out[rank] > critical and self._offers.gives[rank] and rank not in pairing.receiver_of:
                pairing.add_sender(rank, urgent_out)
        return [
            (sender, receiver, self._choose(sender, receiver))
            for receiver, sender in pairing.sender_of.items()
        ]

    def _choose(self, sender: int, receiver: int) -> int:
        """Choose what to send: rather what frees a slot that is waited for, then what the sender has to send."""
        best, most = -1, -1
        for number in self._offers.between(sender, receiver):
            key = self._all[number].layer, sender
            worth = 0
            if sender in self._kept[number] and self._wants.get(key):
                worth = 1 if self._free[key] else 3
            worth += 2 * (sender in self._first[number])
            only = self._holders[number]
            worth += not only & (only - 1)
            if worth > most:
                best, most = number, worth
        return best

    def _cycles(self, idle: int, urgency: list[float]) -> list[Send]:
        """Let ranks in cycles each send what it has to keep to the next one, which replaces what it sends itself."""
        sends = []
        layers = [layer for layer, ranks in self._both.items() if ranks & idle & (ranks & idle) - 1]
        for layer in sorted(layers, key=self._left_of.__getitem__, reverse=True):
            ranks = self._both[layer] & idle
            if not ranks & ranks - 1:
                continue
            gives: dict[int, int] = {}
            for sender in members(ranks):
                receivers = 0
                for number in self._keeps[layer, sender]:
                    receivers |= self._may_get(number, sender)
                gives[sender] = receivers & ranks
            order = sorted(gives, key=urgency.__getitem__, reverse=True)
            for sender, receiver in find_cycles(gives, order).items():
                number = next(
                    number
                    for number in self._keeps[layer, sender]
                    if self._may_get(number, sender) >> receiver & 1
                )
                sends.append((sender, receiver, number))
                idle ^= 1 << sender
        return sends

    def _may_get(self, number: int, sender: int) -> int:
        """Return the ranks that may get from this one what it has to keep for one of them."""
        scope = self._kept[number][sender] & self._lacking[number]
        if self._ranks.node[sender] == self._ranks.every:
            return scope
        near = (rank for rank in members(scope) if self._sources(number, rank) >> sender & 1)
        return sum(1 << rank for rank in near)

    def _follow(self, sends: list[Send], senders: int, receivers: int) -> None:
        """Add what becomes possible by what is sent: a rank that gives away what it had to keep can take something."""
        for sender, receiver, number in sends:  # grows
            if not receivers >> sender & 1:
                continue
            layer = self._all[number].layer
            scope = self._kept[number].get(sender, 0)
            if not scope >> receiver & 1:
                continue
            for wanted in self._wants.get((layer, sender), ()):
                free = self._sources(wanted, sender) & senders
                if free:
                    giver = max(members(free), key=self._left_out.__getitem__)
                    sends.append((giver, sender, wanted))
                    senders ^= 1 << giver
                    receivers ^= 1 << sender
                    break

    # What a round changes.

    def _send(self, sends: list[Send]) -> None:
        read = [self._slot_of[number, sender] for sender, _, number in sends]
        changed = {number for _, _, number in sends}
        keys = set()
        for _, receiver, number in sends:
            keys |= self._arrive(number, receiver)
        for (_, receiver, number), source in zip(sends, read, strict=True):
            slot, gone = self._replace(number, receiver)
            self.records.append((self.num_rounds, number, source, slot))
            if gone is not None:
                changed.add(gone)
        self.left -= len(sends)
        for key in keys:
            self._note_both(key)
            if bool(self._free.get(key)) != (key in self._open):
                self._open ^= {key}
                for number in self._wants.get(key, ()):
                    self._offer(number, key[1])
        for number in changed:
            for rank in members(self._lacking[number]):
                self._offer(number, rank)

    def _arrive(self, number: int, receiver: int) -> set[tuple[int, int]]:
        """Note that a rank has an expert now, and what others need not keep or send any more; returns what that changes."""
        layer = self._all[number].layer
        key = layer, receiver
        self._holders[number] |= 1 << receiver
        self._lacking[number] ^= 1 << receiver
        self._offer(number, receiver)
        del self._wants[key][number]
        self._left_in[receiver] -= 1
        self._left_of[layer] -= 1
        touched = {key}
        kept = self._kept[number]
        for rank in [rank for rank, scope in kept.items() if scope >> receiver & 1]:
            del kept[rank]
            del self._keeps[layer, rank][number]
            touched.add((layer, rank))
            if (layer, rank) in self._free:
                self._free[layer, rank].append(self._slot_of[number, rank])
        first = self._first[number]
        for rank in [rank for rank, scope in first.items() if scope >> receiver & 1]:
            scope = first.pop(rank)
            self._left_out[rank] -= 1
            if self._lacking[number] & scope:
                next_one = min(members(self._holders[number] & scope), key=self._left_out.__getitem__)
                first[next_one] = scope
                self._left_out[next_one] += 1
        return touched

    def _replace(self, number: int, receiver: int) -> tuple[int, int | None]:
        """Put what has arrived in a slot; returns the slot, and the need whose copy was there."""
        free = self._free[self._all[number].layer, receiver]
        goal = self._needs.goal_of[number, receiver]
        slot = goal if goal in free else free[-1]
        free.remove(slot)
        gone = self._need_in.get(slot)
        if gone is not None:
            self._holders[gone[0]] &= ~(1 << receiver)
            del self._slot_of[gone]
        self._slot_of[number, receiver] = slot
        self._need_in[slot] = number, receiver
        return slot, None if gone is None else gone[0]
