# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""DeepSeek's two policies, written anew and vectorised over layers.

Source of the algorithm: DeepSeek EPLB (github.com/deepseek-ai/EPLB), its README and published example,
which `rebalance_experts` reproduces bit for bit. Hierarchical: pack expert groups to nodes, replicate
within each node, pack replicas to the node's ranks. Global: the same with one group on one node.

Its arithmetic is kept: loads, shares and sums in float32, ties to the lower index.

Replication there may give an expert more copies than there are ranks, and packing may put two copies on
one rank, where the second is wasted (DeepSeek EPLB 22). The policies below keep DeepSeek's answer where
it is free of that, and mend it where it is not, by capping the copies and swapping the second copies away;
with ``allow_duplicates`` they keep it always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import LayoutError
from expert_maps.policies._mend import duplicate_layers, swap_duplicates_away

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.policies.base import Cluster

    Float32Array = NDArray[np.float32]
    Int64Array = NDArray[np.int64]


def balanced_packing(weight: Float32Array, num_packs: int) -> tuple[Int64Array, Int64Array]:
    """Pack items, heaviest first, each into the lightest pack that has room; n / m items a pack.

    Args:
        weight: float32 [N, n], N independent problems.
        num_packs: m, divides n.

    Returns:
        pack_index: int64 [N, n], the pack of each item.
        index_in_pack: int64 [N, n], its position there.
    """
    num_problems, num_items = weight.shape
    capacity = num_items // num_packs
    if capacity == 1:
        index = np.broadcast_to(np.arange(num_items), weight.shape)
        return index.copy(), np.zeros(weight.shape, dtype=np.int64)
    problems = np.arange(num_problems)
    order = np.argsort(-weight, axis=1, kind="stable")
    pack_index = np.empty(weight.shape, dtype=np.int64)
    index_in_pack = np.empty(weight.shape, dtype=np.int64)
    sums = np.zeros((num_problems, num_packs), dtype=np.float32)
    fill = np.zeros((num_problems, num_packs), dtype=np.int64)
    for item in order.T:  # [N], one item of each problem
        pack = sums.argmin(axis=1)
        position = fill[problems, pack]
        pack_index[problems, item] = pack
        index_in_pack[problems, item] = position
        fill[problems, pack] = position + 1
        # A full pack is out of the race for good.
        sums[problems, pack] = np.where(
            position + 1 == capacity, np.float32(np.inf), sums[problems, pack] + weight[problems, item]
        )
    return pack_index, index_in_pack


def replicate_experts(
    weight: Float32Array, num_physical: int, max_replicas: int | None = None
) -> tuple[Int64Array, Int64Array]:
    """Give each further copy to the expert whose copies carry most.

    Args:
        weight: float32 [N, n].
        num_physical: slots, at least n.
        max_replicas: most copies of one expert; None for DeepSeek's own unlimited choice.

    Returns:
        physical_to_logical: int64 [N, num_physical]: all experts in order, then the copies.
        replica_count: int64 [N, n].
    """
    num_problems, num_logical = weight.shape
    problems = np.arange(num_problems)
    physical_to_logical = np.empty((num_problems, num_physical), dtype=np.int64)
    physical_to_logical[:, :num_logical] = np.arange(num_logical)
    count = np.ones((num_problems, num_logical), dtype=np.int64)
    share = weight.copy()
    for slot in range(num_logical, num_physical):
        hottest = share.argmax(axis=1)
        physical_to_logical[:, slot] = hottest
        copies = count[problems, hottest] + 1
        count[problems, hottest] = copies
        share[problems, hottest] = weight[problems, hottest] / copies.astype(np.float32)
        if max_replicas is not None:
            full = copies >= max_replicas
            share[problems[full], hottest[full]] = -1.0
    return physical_to_logical, count


def rebalance_experts(
    weight: NDArray[np.floating] | NDArray[np.integer],
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Plan exactly as DeepSeek EPLB's entry of the same name does, duplicates on a rank included.

    Args:
        weight: [L, E], tokens of each logical expert.
        num_replicas: P, divides by ``num_gpus``.
        num_groups: expert groups; where they divide by ``num_nodes`` the hierarchical policy plans,
            elsewhere the global one.
        num_nodes: servers; divides ``num_gpus``.
        num_gpus: R.

    Returns:
        physical_to_logical: int64 [L, P].
        logical_to_physical: int64 [L, E, X], padded with −1, replicas in the order they were added.
        replica_count: int64 [L, E].
    """
    if num_groups % num_nodes:
        num_groups, num_nodes = 1, 1
    weight = np.asarray(weight)
    physical_to_logical, replica_index = _plan(
        weight.astype(np.float32), num_replicas, num_groups, num_nodes, num_gpus
    )
    num_layers, num_logical = weight.shape
    layers = np.arange(num_layers)[:, None]
    replica_count = np.zeros((num_layers, num_logical), dtype=np.int64)
    np.add.at(replica_count, (layers, physical_to_logical), 1)
    logical_to_physical = np.full((num_layers, num_logical, replica_count.max()), -1, dtype=np.int64)
    logical_to_physical[layers, physical_to_logical, replica_index] = np.arange(num_replicas)
    return physical_to_logical, logical_to_physical, replica_count


def automatic(load: NDArray[np.float64], cluster: Cluster) -> Int64Array:
    """Choose as DeepSeek does: hierarchical where the groups divide by the nodes, else global."""
    return (globally if cluster.num_groups % cluster.num_nodes else hierarchical)(load, cluster)


def globally(load: NDArray[np.float64], cluster: Cluster) -> Int64Array:
    """Replicate and pack over all ranks, whatever their node."""
    return _plan_and_mend(load, cluster, num_groups=1, num_nodes=1)


def hierarchical(load: NDArray[np.float64], cluster: Cluster) -> Int64Array:
    """Keep each group's experts, copies included, on one node.

    Raises:
        LayoutError: the groups do not divide by the nodes, or a node has more slots than its ranks can
            hold distinct copies.
    """
    if cluster.num_groups % cluster.num_nodes:
        msg = (
            f"num_groups is {cluster.num_groups}; expected a multiple of num_nodes {cluster.num_nodes} "
            "(policy 'deepseek_global' takes any)"
        )
        raise LayoutError(msg)
    most = load.shape[1] * (cluster.ep_size // cluster.num_nodes)
    if cluster.num_physical_experts > most and not cluster.allow_duplicates:
        msg = (
            f"num_physical_experts is {cluster.num_physical_experts}; expected at most {most}: an expert "
            f"stays on one node, which has {cluster.ep_size // cluster.num_nodes} ranks"
        )
        raise LayoutError(msg)
    return _plan_and_mend(load, cluster, cluster.num_groups, cluster.num_nodes)


def _plan_and_mend(
    load: NDArray[np.float64], cluster: Cluster, num_groups: int, num_nodes: int
) -> Int64Array:
    num_physical, ep_size = cluster.num_physical_experts, cluster.ep_size
    weight = load.astype(np.float32)
    placed, _ = _plan(weight, num_physical, num_groups, num_nodes, ep_size)
    bad = duplicate_layers(placed, ep_size)
    if bad.size and not cluster.allow_duplicates:
        ranks_per_node = ep_size // num_nodes
        capped, _ = _plan(
            weight[bad], num_physical, num_groups, num_nodes, ep_size, max_replicas=ranks_per_node
        )
        placed[bad] = swap_duplicates_away(load[bad], capped, ep_size, num_nodes)
    return placed


def _plan(
    weight: Float32Array,
    num_physical: int,
    num_groups: int,
    num_nodes: int,
    num_ranks: int,
    max_replicas: int | None = None,
) -> tuple[Int64Array, Int64Array]:
    """Return physical_to_logical [L, P] and replica_index [L, P].

    Experts are numbered twice: as the model does, and *by node*: those of a node's groups in a row.
    """
    num_layers, num_logical = weight.shape
    group_size = num_logical // num_groups
    ranks_per_node = num_ranks // num_nodes
    experts_per_node = num_logical // num_nodes
    # 1. Pack groups to nodes, and number the experts by node.
    group_weight = weight.reshape(num_layers, num_groups, group_size).sum(axis=2)
    node, place = balanced_packing(group_weight, num_nodes)
    first = (node * (num_groups // num_nodes) + place) * group_size  # [L, groups]
    by_node = (first[:, :, None] + np.arange(group_size)).reshape(num_layers, num_logical)
    logical_of = _inverse(by_node)
    node_weight = np.take_along_axis(weight, logical_of, axis=1).reshape(-1, experts_per_node)
    # 2. Replicate within each node.
    copy_of, count = replicate_experts(node_weight, num_physical // num_nodes, max_replicas)
    replica_index = _occurrence(copy_of)
    # 3. Pack the copies to the node's ranks.
    carried: Float32Array = np.divide(node_weight, count, dtype=np.float32)
    share = np.take_along_axis(carried, copy_of, axis=1)
    rank, slot = balanced_packing(share, ranks_per_node)
    in_slot = _inverse(rank * (num_physical // num_ranks) + slot)  # [L · nodes, P / nodes]
    in_node = np.take_along_axis(copy_of, in_slot, axis=1).reshape(num_layers, num_nodes, -1)
    expert = (in_node + np.arange(0, num_logical, experts_per_node)[:, None]).reshape(num_layers, -1)
    return (
        np.take_along_axis(logical_of, expert, axis=1),
        np.take_along_axis(replica_index, in_slot, axis=1).reshape(num_layers, -1),
    )


def _inverse(permutation: Int64Array) -> Int64Array:
    inverse = np.empty_like(permutation)
    np.put_along_axis(inverse, permutation, np.arange(permutation.shape[1])[None], axis=1)
    return inverse


def _occurrence(values: Int64Array) -> Int64Array:
    """Return, for each entry of a row, how many equal ones stand before it."""
    order = np.argsort(values, axis=1, kind="stable")
    in_order = np.take_along_axis(values, order, axis=1)
    position = np.arange(values.shape[1])
    is_first = np.ones(values.shape, dtype=bool)
    is_first[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    start = np.maximum.accumulate(np.where(is_first, position, 0), axis=1)
    occurrence = np.empty_like(values)
    np.put_along_axis(occurrence, order, position - start, axis=1)
    return occurrence
