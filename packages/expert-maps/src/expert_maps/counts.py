# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many slots there are: redundancy by either of its names, and counts for which a placement exists."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from expert_maps import limits
from expert_maps._words import counted
from expert_maps.errors import LayoutError
from expert_maps.validation import as_count, check_counts, nearest_multiples

if TYPE_CHECKING:
    from expert_maps.policies.base import Cluster


def least_redundancy(num_experts: int, ep_size: int) -> int:
    """Return the fewest redundant experts with which every rank has equally many slots; 0 where E divides.

    Args:
        num_experts: E.
        ep_size: R.

    Raises:
        LayoutError: a count is no integer, or below 1.
    """
    experts = as_count("num_experts", num_experts, 1, error=LayoutError)
    return -experts % as_count("ep_size", ep_size, 1, error=LayoutError)


def as_physical(
    num_experts: int,
    ep_size: int,
    num_redundant_experts: int | None,
    num_physical_experts: int | None,
    *,
    allow_uneven: bool = False,
) -> int | None:
    """Return P, from whichever of its names is given; None where neither is.

    Args:
        num_experts: E.
        ep_size: R.
        num_redundant_experts: P − E.
        num_physical_experts: P; whether it divides by R is not asked here.
        allow_uneven: accept a P − E with which P does not divide by R.

    Raises:
        LayoutError: a count has the wrong type or sign, both are given and disagree, or P − E does not divide.
    """
    ranks = as_count("ep_size", ep_size, 1, limits.MAX_RANKS, error=LayoutError)
    if num_physical_experts is not None:
        num_physical_experts = as_count("num_physical_experts", num_physical_experts, 1, error=LayoutError)
    if num_redundant_experts is None:
        return num_physical_experts
    redundant = as_count("num_redundant_experts", num_redundant_experts, 0, error=LayoutError)
    total = num_experts + redundant
    if num_physical_experts not in {None, total}:
        msg = (
            f"num_redundant_experts is {redundant} and num_physical_experts {num_physical_experts}; expected "
            f"{num_experts} + {redundant} = {total}, or one of them alone"
        )
        raise LayoutError(msg)
    if not allow_uneven:
        check_divides(num_experts, redundant, ranks)
    return total


def check_divides(num_experts: int, num_redundant_experts: int, ep_size: int) -> None:
    """Refuse redundancy that gives ranks unequally many slots, naming the nearest counts that work.

    Raises:
        LayoutError: ``num_redundant_experts`` > 0 and (E + redundant) % R ≠ 0.
    """
    total = num_experts + num_redundant_experts
    if num_redundant_experts and total % ep_size:
        nearest = nearest_multiples(total, num_experts, ep_size)
        msg = (
            f"num_redundant_experts is {num_redundant_experts}: {num_experts} + {num_redundant_experts} = "
            f"{counted(total, 'slot')} do not divide by ep_size {ep_size}; nearest that work: "
            f"{' and '.join(map(str, nearest))}"
        )
        raise LayoutError(msg)


def check_cluster(num_layers: int, num_experts: int, cluster: Cluster) -> Cluster:
    """Return the cluster with plain ints, or refuse counts for which no placement exists.

    Args:
        num_layers: L.
        num_experts: E.
        cluster: what is asked for.

    Raises:
        LayoutError: a count has the wrong type, or the counts contradict each other.
    """
    ep_size = as_count("ep_size", cluster.ep_size, 1, limits.MAX_RANKS, error=LayoutError)
    groups = as_count("num_groups", cluster.num_groups, 1, error=LayoutError)
    nodes = as_count("num_nodes", cluster.num_nodes, 1, error=LayoutError)
    slots = as_count("num_physical_experts", cluster.num_physical_experts, 1, error=LayoutError)
    check_counts(
        num_layers=num_layers,
        num_logical_experts=num_experts,
        ep_size=ep_size,
        num_physical_experts=slots,
        error=LayoutError,
    )
    most = limits.MAX_SLOTS if cluster.allow_duplicates else num_experts * ep_size
    if not num_experts <= slots <= most:
        msg = (
            f"num_physical_experts is {slots}; expected {num_experts} … {most}: each of "
            f"{counted(num_experts, 'expert')} at least once, and at most once on each of {counted(ep_size, 'rank')}"
        )
        raise LayoutError(msg)
    if slots % ep_size and not cluster.allow_uneven:
        counts = (count + num_experts for count in nearest_multiples(slots, num_experts, ep_size))
        nearest = [count for count in counts if count <= most]
        msg = (
            f"num_physical_experts is {slots}; expected a multiple of ep_size {ep_size}, the nearest: "
            f"{' and '.join(map(str, nearest))} (or allow_uneven, for ranks with unequally many slots)"
        )
        raise LayoutError(msg)
    if num_experts % groups:
        msg = f"num_groups is {groups}; expected a divisor of the {counted(num_experts, 'expert')}"
        raise LayoutError(msg)
    if ep_size % nodes:
        msg = f"num_nodes is {nodes}; expected a divisor of ep_size {ep_size}"
        raise LayoutError(msg)
    return replace(cluster, num_physical_experts=slots, ep_size=ep_size, num_groups=groups, num_nodes=nodes)


def check_groups(cluster: Cluster) -> None:
    """Refuse groups that cannot stay on nodes, each node with as many: a plan would have to ignore them.

    Raises:
        LayoutError: the groups do not divide by the nodes; both are named.
    """
    if cluster.num_groups % cluster.num_nodes:
        msg = (
            f"num_groups is {cluster.num_groups} and num_nodes {cluster.num_nodes}; expected groups that divide by "
            "the nodes, as many on each (leave both out to plan without groups; policy 'deepseek' does so by itself)"
        )
        raise LayoutError(msg)
