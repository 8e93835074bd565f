# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The policy ``reference``: the plans of ``balanced``, slot for slot, only slower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps.counts import check_groups
from expert_maps.policies.balanced import DEFAULT_TOLERANCE, check_counts
from expert_maps.reference.planner import Problem, plan_layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.policies.base import Cluster


def plan_rows(load: NDArray[np.float64], cluster: Cluster) -> NDArray[np.int64]:
    """Plan from scratch at the default tolerance.

    Args:
        load: float64 [L, E], finite and not negative.
        cluster: what to plan for.

    Returns:
        physical_to_logical, int64 [L, P].

    Raises:
        LayoutError: there is no placement for these counts, or the groups do not divide by the nodes.
    """
    check_groups(cluster)
    check_counts(load.shape[1], cluster)
    grouped = cluster.is_hierarchical
    problem = Problem(
        cluster.slots_per_rank.tolist(),
        cluster.num_groups if grouped else 1,
        cluster.num_nodes if grouped else 1,
        DEFAULT_TOLERANCE,
        max_kicks=0,
    )
    # By a power of two, which is exact: a layer's largest load is about 1, and nothing over- or underflows.
    scaled = np.ldexp(load, -np.frexp(load.max(axis=1))[1][:, None])
    plans = (plan_layer(row, problem).slots for row in scaled.tolist())
    return np.array([[expert for slots in plan for expert in slots] for plan in plans], dtype=np.int64)
