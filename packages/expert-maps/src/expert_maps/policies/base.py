# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The one signature behind which every policy stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Cluster:
    """What a policy plans for; the counts are consistent when a policy sees them.

    Attributes:
        num_physical_experts: P, slots of one layer over all ranks; divides by ``ep_size``.
        ep_size: R.
        num_groups: the router's expert groups; divides E.
        num_nodes: servers of ``ep_size / num_nodes`` ranks each.
        allow_duplicates: whether a policy may put an expert twice on a rank.
    """

    num_physical_experts: int
    ep_size: int
    num_groups: int = 1
    num_nodes: int = 1
    allow_duplicates: bool = False


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
