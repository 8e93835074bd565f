# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`Schedule`: what is sent in each round of a migration, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._frozen import Frozen, freeze, lazy
from expert_maps._words import counted
from expert_maps.errors import ExpertMapsError
from expert_maps.simulation.settings import Costs
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from expert_maps.placement import Placement

    Int32Array = NDArray[np.int32]
    BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, repr=False)
class Schedule(Frozen):
    """A way from one placement to another: N transfers in rounds, then C copies within ranks.

    In a round each rank sends one expert at most and receives one at most, read as they stood before the round. Every rank has
    room for one more expert, in all layers together: what arrives is written there, and copied to its slot when the round is
    over, between two steps of serving. So at any time the slots hold every expert. Read-only, and equal where its content is.

    Attributes:
        before: the placement that is left.
        after: the placement that is reached, slot by slot.
        num_nodes: servers of R / num_nodes ranks each.
        round: int32 [N], of each transfer, ascending from 0.
        layer: int32 [N].
        expert: int32 [N], logical.
        source: int32 [N], the slot of the layer, [0, P), that is read.
        target: int32 [N], the slot that is replaced.
        local: int32 [C, 3]: layer, slot that is read, slot that is replaced; of the same rank. All at once, after the last round.
        lower_bound: no schedule that sends as little between nodes has fewer rounds.
    """

    before: Placement
    after: Placement
    num_nodes: int
    round: Int32Array
    layer: Int32Array
    expert: Int32Array
    source: Int32Array
    target: Int32Array
    local: Int32Array
    lower_bound: int

    @property
    def num_rounds(self) -> int:
        """How many rounds there are."""
        return int(self.round[-1]) + 1 if len(self.round) else 0

    @property
    def num_transfers(self) -> int:
        """N: experts that are sent from a rank to another, in all rounds and layers."""
        return len(self.round)

    @lazy
    def source_rank(self) -> Int32Array:
        """int32 [N]: who sends."""
        return freeze(self.before.slot_rank[self.source])

    @lazy
    def target_rank(self) -> Int32Array:
        """int32 [N]: who receives."""
        return freeze(self.before.slot_rank[self.target])

    @lazy
    def between_nodes(self) -> BoolArray:
        """Bool [N]: transfers between ranks of different nodes."""
        size = self.before.ep_size // self.num_nodes
        return freeze(self.source_rank // size != self.target_rank // size)

    def bytes(self, expert_bytes: int) -> int:
        """Return the bytes that are sent, for experts of ``expert_bytes`` each."""
        return self.num_transfers * as_count("expert_bytes", expert_bytes, 0, maximum=2**63 - 1)

    def seconds(self, expert_bytes: int, bandwidth: float) -> float:
        """Return how long the rounds take: each as long as one expert; copies within a rank are not counted.

        Args:
            expert_bytes: of one expert's weights, scales included.
            bandwidth: GB/s (10⁹ bytes a second) that a rank sends and, at the same time, receives.

        Raises:
            ExpertMapsError: a count or a bandwidth that no server has.
        """
        return Costs(expert_bytes, bandwidth).seconds(self.num_rounds)

    def states(self) -> Iterator[Int32Array]:
        """Yield physical_to_logical, int32 [L, P], after each round, and last after the copies within ranks."""
        now = self.before.physical_to_logical.copy()
        ends = np.searchsorted(self.round, np.arange(self.num_rounds), side="right").tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            now[self.layer[start:end], self.target[start:end]] = self.expert[start:end]
            yield now.copy()
        layer, source, target = self.local.T
        now[layer, target] = now[layer, source]
        yield now

    def summary(self) -> str:
        """Return one line: how many rounds and transfers, and how few rounds there can be."""
        crossing = int(self.between_nodes.sum())
        nodes = f", {crossing} of them between nodes" if self.num_nodes > 1 else ""
        as_little = " that sends as little between nodes" if self.num_nodes > 1 else ""
        return (
            f"{counted(self.num_rounds, 'round')} (no schedule{as_little} has fewer than {self.lower_bound}): "
            f"{counted(self.num_transfers, 'expert')} sent to another rank{nodes}, {len(self.local)} copied within one"
        )

    def __repr__(self) -> str:
        """Name the counts; the transfers themselves would flood a log."""
        return (
            f"Schedule(rounds={self.num_rounds}, lower_bound={self.lower_bound}, transfers={self.num_transfers}, "
            f"local={len(self.local)})"
        )


def as_nodes(num_nodes: int, ep_size: int) -> int:
    """Return the number of nodes.

    Raises:
        ExpertMapsError: it is no divisor of R.
    """
    nodes = as_count("num_nodes", num_nodes, 1)
    if ep_size % nodes:
        msg = f"num_nodes is {nodes}; expected a divisor of ep_size {ep_size}"
        raise ExpertMapsError(msg)
    return nodes
