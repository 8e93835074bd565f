# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which rank can send what to which, kept up to date."""

from __future__ import annotations

from expert_maps.migration.matching import members


class Offers:
    """For each pair of ranks the needs that one can serve for the other; it changes by `offer` only.

    Attributes:
        gets: for each receiver the senders that can send it something.
        gives: for each sender the receivers, the same pairs.
    """

    def __init__(self, ranks: int) -> None:
        """Begin with nothing offered.

        Args:
            ranks: R.
        """
        self.gets, self.gives = [0] * ranks, [0] * ranks
        self._ranks = ranks
        self._between: dict[int, dict[int, None]] = {}
        self._senders: dict[tuple[int, int], int] = {}

    def between(self, sender: int, receiver: int) -> dict[int, None]:
        """Return the numbers of the needs that one can serve for the other."""
        return self._between[receiver * self._ranks + sender]

    def offer(self, number: int, receiver: int, senders: int) -> None:
        """Note that these senders can serve a need for a rank, and no others.

        Args:
            number: of the need.
            receiver: the rank.
            senders: a set of ranks.
        """
        before = self._senders.get((number, receiver), 0)
        if senders == before:
            return
        self._senders[number, receiver] = senders
        first = receiver * self._ranks
        for sender in members(senders & ~before):
            needs = self._between.get(first + sender)
            if not needs:
                needs = self._between[first + sender] = {}
                self.gets[receiver] |= 1 << sender
                self.gives[sender] |= 1 << receiver
            needs[number] = None
        for sender in members(before & ~senders):
            needs = self._between[first + sender]
            del needs[number]
            if not needs:
                self.gets[receiver] &= ~(1 << sender)
                self.gives[sender] &= ~(1 << receiver)
