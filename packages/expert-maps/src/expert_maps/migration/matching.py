# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Matchings of one round: which rank sends to which. Sets of ranks are integers whose bits are the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def members(ranks: int) -> list[int]:
    """Return the ranks of a set, ascending."""
    found = []
    while ranks:
        lowest = ranks & -ranks
        found.append(lowest.bit_length() - 1)
        ranks ^= lowest
    return found


class Pairing:
    """A matching of receivers to senders that grows; what is matched stays matched, unless a more urgent sender takes its place.

    Attributes:
        sender_of: receiver → sender.
        receiver_of: sender → receiver.
    """

    def __init__(self, gets: Sequence[int], gives: Sequence[int], senders: int, receivers: int) -> None:
        """Begin with nothing matched.

        Args:
            gets: for each receiver the senders that have something for it.
            gives: for each sender the receivers that it has something for: the same pairs.
            senders: those that take part.
            receivers: those that take part.
        """
        self._gets, self._gives = gets, gives
        self._senders, self._receivers = senders, receivers
        self.sender_of: dict[int, int] = {}
        self.receiver_of: dict[int, int] = {}
        self._free = senders

    def add_receiver(self, receiver: int, urgency: Sequence[float]) -> None:
        """Match a receiver: with the most urgent free sender, or along an augmenting path, where there is one."""
        direct = self._gets[receiver] & self._free
        if direct:
            self._join(max(members(direct), key=urgency.__getitem__), receiver)
            return
        came: dict[int, int] = {}  # sender → the receiver from which the search came to it
        seen, queue = 0, [receiver]
        for at in queue:
            new = self._gets[at] & self._senders & ~seen
            seen |= new
            for sender in members(new):
                came[sender] = at
            if new & self._free:
                last = max(members(new & self._free), key=urgency.__getitem__)
                self._free ^= 1 << last
                _rejoin(last, came, self.sender_of, self.receiver_of)
                return
            queue += [self.receiver_of[sender] for sender in members(new)]

    def add_sender(self, sender: int, urgency: Sequence[float]) -> None:
        """Match a sender: along an augmenting path, or in place of a less urgent one."""
        came: dict[int, int] = {}  # receiver → the sender from which the search came to it
        seen, queue = 0, [sender]
        for at in queue:
            new = self._gives[at] & self._receivers & ~seen
            seen |= new
            for receiver in members(new):
                came[receiver] = at
                other = self.sender_of.get(receiver)
                if other is not None and urgency[other] >= urgency[sender]:
                    queue.append(other)
                    continue
                if other is not None:
                    del self.receiver_of[other]
                    self._free |= 1 << other
                self._free &= ~(1 << sender)
                _rejoin(receiver, came, self.receiver_of, self.sender_of)
                return

    def _join(self, sender: int, receiver: int) -> None:
        self.sender_of[receiver], self.receiver_of[sender] = sender, receiver
        self._free ^= 1 << sender


def _rejoin(last: int, came: dict[int, int], mate_of: dict[int, int], of_mate: dict[int, int]) -> None:
    """Match along the path that a search has come: each rank on it gets the one that it led to in place of its own."""
    while True:
        at = came[last]
        before = mate_of.get(at)
        mate_of[at], of_mate[last] = last, at
        if before is None:
            return
        last = before


def find_cycles(gives: dict[int, int], order: Sequence[int]) -> dict[int, int]:
    """Find disjoint cycles of ranks, each of which sends to the next; through each rank in turn if that can be.

    It is a perfect matching of ranks as senders to ranks as receivers in which a rank may be matched to itself, which is to
    say that it is on no cycle; a rank that is on one stays on one while others are added.

    Args:
        gives: for each rank the ranks that it has something for, all among the keys and never itself.
        order: the keys, the most urgent first.

    Returns:
        Sender → receiver.
    """
    to = {rank: rank for rank in gives}
    source = dict(to)
    alone = {rank: 1 << rank for rank in gives}  # the rank itself, while it may be on no cycle
    for start in order:
        alone[start] = 0
        if to[start] != start:
            continue
        came: dict[int, int] = {}
        seen, queue = 0, [start]
        for at in queue:
            new = (gives[at] | alone[at]) & ~seen
            seen |= new
            found = members(new)
            for receiver in found:
                came[receiver] = at
            if new >> start & 1:
                _turn(start, came, to, source)
                break
            queue += [source[receiver] for receiver in found]
        else:
            alone[start] = 1 << start
    return {sender: receiver for sender, receiver in to.items() if sender != receiver}


def _turn(start: int, came: dict[int, int], to: dict[int, int], source: dict[int, int]) -> None:
    """Match along the path that led from ``start`` as a sender back to it as a receiver."""
    receiver = start
    while True:
        sender = came[receiver]
        before = to[sender]
        to[sender], source[receiver] = receiver, sender
        if sender == start:
            return
        receiver = before
