# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`Need`: an expert that some rank lacks and gets, and from whom it may come."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ranks:
    """The ranks and their nodes. Sets of ranks are integers whose bits are the ranks.

    Attributes:
        count: R.
        node: for each rank the set of its node's ranks.
        every: all of them.
    """

    count: int
    node: list[int]
    every: int

    @classmethod
    def on_nodes(cls, ep_size: int, num_nodes: int) -> Ranks:
        """Spread ranks evenly: the first ones are the first node's."""
        size = ep_size // num_nodes
        whole = (1 << size) - 1
        return cls(ep_size, [whole << rank // size * size for rank in range(ep_size)], (1 << ep_size) - 1)


@dataclass(frozen=True)
class Need:
    """An expert of a layer that some rank lacks and gets.

    Attributes:
        layer: of it.
        expert: its number.
        holders: the ranks that hold it.
        lacking: the ranks that get it, none of which holds it.
        kept: rank → ranks. The rank is to lose its copy, and must keep it until one of those ranks has its own.
        first: rank → ranks: one that is to send the first copy to one of those.
    """

    layer: int
    expert: int
    holders: int
    lacking: int
    kept: dict[int, int]
    first: dict[int, int] = field(default_factory=dict)


def sources(ranks: Ranks, holders: int, lacking: int, receiver: int) -> int:
    """Return the ranks from which a rank may get an expert now: the nearest ones.

    If its node has none, one of the node's ranks gets it from elsewhere, and the others wait for that.

    Args:
        ranks: with their nodes.
        holders: the ranks that hold it now.
        lacking: the ranks that still lack it.
        receiver: one of them.
    """
    near = ranks.node[receiver]
    if holders & near:
        return holders & near
    waiting = lacking & near
    return holders if waiting & -waiting == 1 << receiver else 0
