# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where the placement that a plan starts from breaks a rule which the plan keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.policies.base import Cluster, Start

    BoolArray = NDArray[np.bool_]


def broken_layers(start: Start, num_experts: int, cluster: Cluster) -> BoolArray:
    """Find the layers that cannot stay as they are: an expert twice on a rank, or groups against the node rule.

    Args:
        start: where the experts are now.
        num_experts: E.
        cluster: what is planned for.

    Returns:
        bool [L].
    """
    layers, slots = np.nonzero(start.experts >= 0)
    experts = start.experts[layers, slots]
    rank = np.repeat(np.arange(len(start.held)), start.held)[slots]
    num_layers = len(start.experts)
    copies = np.zeros((num_layers, cluster.ep_size, num_experts), dtype=np.int32)
    np.add.at(copies, (layers, rank, experts), 1)
    broken: BoolArray = np.any(copies > 1, axis=(1, 2))
    if not cluster.is_hierarchical:
        return broken
    group_size = num_experts // cluster.num_groups
    node = rank // (cluster.ep_size // cluster.num_nodes)
    has = np.zeros((num_layers, cluster.num_nodes, cluster.num_groups), dtype=bool)
    has[layers, node, experts // group_size] = True
    is_split = (has.sum(axis=1) > 1).any(axis=1)
    is_crowded = (has.sum(axis=2) > cluster.num_groups // cluster.num_nodes).any(axis=1)
    return broken | is_split | is_crowded
