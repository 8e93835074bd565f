# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The one signature behind which every policy stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from expert_maps._frozen import Frozen, lazy
from expert_maps._rules import split_evenly

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int32Array = NDArray[np.int32]


@dataclass(frozen=True)
class Cluster:
    """What a policy plans for; the counts are consistent when a policy sees them.

    Attributes:
        num_physical_experts: P, slots of one layer over all ranks; divides by ``ep_size`` unless
            ``allow_uneven``.
        ep_size: R.
        num_groups: the router's expert groups; divides E.
        num_nodes: servers of ``ep_size / num_nodes`` ranks each.
        allow_duplicates: whether a policy may put an expert twice on a rank.
        allow_uneven: whether ranks may have unequally many slots.
    """

    num_physical_experts: int
    ep_size: int
    num_groups: int = 1
    num_nodes: int = 1
    allow_duplicates: bool = False
    allow_uneven: bool = False

    @property
    def is_hierarchical(self) -> bool:
        """Whether each group's experts stay on one node, as DeepSeek EPLB decides it."""
        return self.num_nodes > 1 and self.num_groups % self.num_nodes == 0

    @lazy
    def slots_per_rank(self) -> NDArray[np.int64]:
        """int64 [R]: an equal share each; of what is left over one more on the first ranks (of each node)."""
        nodes = self.num_nodes if self.is_hierarchical else 1
        return np.tile(split_evenly(self.num_physical_experts // nodes, self.ep_size // nodes), nodes)


@dataclass(frozen=True, eq=False)
class Start(Frozen):
    """The placement from which a plan starts.

    Attributes:
        experts: int32 [L, H], the experts that each rank holds now, rank after rank; −1 where a slot is empty.
        held: int32 [R], how many of them are each rank's; adds up to H.
        max_moves: slots of a layer that may receive another expert, one which their rank does not hold, beyond those
            that must; None for any number.
        effort: how long better steps are sought in a layer, in loads of ranks that are read; None for as long as the planner
            sees fit. Less is never wrong, only hotter.
    """

    experts: Int32Array
    held: Int32Array
    max_moves: int | None = None
    effort: int | None = None


class Policy(Protocol):
    """A balancing policy: layers are independent of each other."""

    def __call__(self, load: NDArray[np.float64], cluster: Cluster) -> NDArray[np.int64]:
        """Plan.

        Args:
            load: float64 [L, E], finite and not negative.
            cluster: what to plan for.

        Returns:
            physical_to_logical, [L, P]: every expert is placed, none twice on a rank unless
            ``cluster.allow_duplicates``.

        Raises:
            LayoutError: the policy cannot serve these counts.
        """
        ...
