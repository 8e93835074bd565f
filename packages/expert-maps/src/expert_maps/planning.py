# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`plan`: from an expert load to a placement, by any policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps._validation import INT32_MAX, as_count, nearest_multiples
from expert_maps.errors import LayoutError
from expert_maps.load import ExpertLoad
from expert_maps.placement import Placement
from expert_maps.policies import DEFAULT_POLICY, POLICIES, POLICY_NAMES, PolicyName
from expert_maps.policies.base import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

# Layers are planned in blocks: large enough that NumPy's overhead per call is spread over many of them,
# small enough that progress can be shown.
_LAYERS_PER_BLOCK = 64


@dataclass(frozen=True)
class PlanResult:
    """What `plan` returns.

    Attributes:
        placement: the plan.
        policy: the name of the policy that made it.
        rank_load: float64 [L, R], tokens of each rank under the planned load.
        balancedness: float64 [L], mean / max rank load; 1 is perfect, also for a layer without load.
    """

    placement: Placement
    policy: PolicyName
    rank_load: NDArray[np.float64]
    balancedness: NDArray[np.float64]

    @property
    def max_rank_load(self) -> NDArray[np.float64]:
        """float64 [L]: tokens of the hottest rank."""
        peak: NDArray[np.float64] = self.rank_load.max(axis=1)
        return peak

    @property
    def peak_to_mean(self) -> NDArray[np.float64]:
        """float64 [L]: max / mean rank load, at least 1."""
        return 1.0 / self.balancedness


def plan(
    load: ArrayLike | ExpertLoad,
    *,
    num_physical_experts: int,
    ep_size: int,
    policy: PolicyName | str = DEFAULT_POLICY,
    num_groups: int = 1,
    num_nodes: int = 1,
    allow_duplicates: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> PlanResult:
    """Plan which experts get copies and on which rank every copy sits.

    The result places every expert, none twice on a rank unless that is allowed, and is the same for the
    same input.

    Args:
        load: tokens of each logical expert, [L, E] or [steps, L, E]; these policies sum the steps.
        num_physical_experts: P, slots of one layer over all ranks: a multiple of ``ep_size``, from E to
            E · ep_size (with ``allow_duplicates`` without limit).
        ep_size: R.
        policy: one of `POLICY_NAMES`. ``deepseek`` plans ``deepseek_hierarchical`` where the groups
            divide by the nodes, else ``deepseek_global``, as DeepSeek EPLB does.
        num_groups: the router's expert groups; must divide E.
        num_nodes: servers; must divide ``ep_size``.
        allow_duplicates: let a policy put an expert twice on a rank, where its algorithm does; then
            ``deepseek`` is DeepSeek EPLB's own answer, wasted copies included.
        progress: called with (layers planned, L) as the work goes on.

    Returns:
        The placement with its balancedness per layer.

    Raises:
        LoadError: the load has a wrong shape or type, or a NaN, infinite or negative value.
        LayoutError: an unknown policy, or counts for which no placement exists.
    """
    if policy not in POLICIES:
        msg = f"policy is {policy!r}; expected one of {', '.join(POLICY_NAMES)}"
        raise LayoutError(msg)
    name: PolicyName = policy
    trace = load if isinstance(load, ExpertLoad) else ExpertLoad(load)
    cluster = check_cluster(
        trace.num_experts,
        Cluster(num_physical_experts, ep_size, num_groups, num_nodes, allow_duplicates),
    )
    rows = np.empty((trace.num_layers, cluster.num_physical_experts), dtype=np.int64)
    for start in range(0, trace.num_layers, _LAYERS_PER_BLOCK):
        block = slice(start, start + _LAYERS_PER_BLOCK)
        rows[block] = POLICIES[name](trace.total[block], cluster)
        if progress is not None:
            progress(min(block.stop, trace.num_layers), trace.num_layers)
    placement = Placement(
        rows,
        cluster.ep_size,
        num_logical_experts=trace.num_experts,
        allow_duplicates=allow_duplicates,
    )
    loads = metrics.rank_load(placement, trace)
    return PlanResult(placement, name, loads, metrics.balancedness(placement, trace))


def check_cluster(num_experts: int, cluster: Cluster) -> Cluster:
    """Return the cluster with plain ints, or refuse counts for which no placement exists.

    Raises:
        LayoutError: a count has the wrong type, or the counts contradict each other.
    """
    ep_size = as_count("ep_size", cluster.ep_size, 1, error=LayoutError)
    groups = as_count("num_groups", cluster.num_groups, 1, error=LayoutError)
    nodes = as_count("num_nodes", cluster.num_nodes, 1, error=LayoutError)
    slots = as_count("num_physical_experts", cluster.num_physical_experts, 1, error=LayoutError)
    most = INT32_MAX if cluster.allow_duplicates else num_experts * ep_size
    if not num_experts <= slots <= most:
        msg = (
            f"num_physical_experts is {slots}; expected {num_experts} … {most}: each of "
            f"{num_experts} experts at least once, and at most once on each of {ep_size} ranks"
        )
        raise LayoutError(msg)
    if slots % ep_size:
        counts = (count + num_experts for count in nearest_multiples(slots, num_experts, ep_size))
        nearest = [count for count in counts if count <= most]
        msg = (
            f"num_physical_experts is {slots}; expected a multiple of ep_size {ep_size}, the nearest: "
            f"{' and '.join(map(str, nearest))}"
        )
        raise LayoutError(msg)
    if num_experts % groups:
        msg = f"num_groups is {groups}; expected a divisor of the {num_experts} experts"
        raise LayoutError(msg)
    if ep_size % nodes:
        msg = f"num_nodes is {nodes}; expected a divisor of ep_size {ep_size}"
        raise LayoutError(msg)
    return Cluster(slots, ep_size, groups, nodes, cluster.allow_duplicates)
