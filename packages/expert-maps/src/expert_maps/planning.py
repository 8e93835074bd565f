# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`plan`: from an expert load to a placement, by any policy. `PlanResult` is what it returns."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps._blocks import in_blocks
from expert_maps._starting import start_from
from expert_maps.by_activation import Asked, plan_by_activation
from expert_maps.counts import as_physical, check_cluster, check_groups, least_redundancy
from expert_maps.errors import LayoutError
from expert_maps.load import ExpertLoad, as_load
from expert_maps.placement import Placement, as_placement
from expert_maps.policies import DEFAULT_POLICY, DEFAULT_TOLERANCE, EVERY_POLICY, POLICIES, PolicyName
from expert_maps.policies.balanced import balanced, check_counts
from expert_maps.policies.base import Cluster, Start
from expert_maps.results import Origin, PlanResult
from expert_maps.validation import as_count, as_tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from expert_maps.activation import Batch
    from expert_maps.by_activation import Objective
    from expert_maps.placement import PlacementLike

    Progress = Callable[[int, int], object]

_MOST_THREADS = 1024


def plan(  # noqa: PLR0913 - options by keyword
    load: ArrayLike | ExpertLoad,
    *,
    ep_size: int,
    num_redundant_experts: int | None = None,
    num_physical_experts: int | None = None,
    policy: PolicyName | str = DEFAULT_POLICY,
    num_groups: int = 1,
    num_nodes: int = 1,
    tolerance: float | None = None,
    current: PlacementLike | None = None,
    max_moves: int | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
    certify: bool = False,
    objective: Objective | str = "tokens",
    batch: Batch | None = None,
    progress: Progress | None = None,
    num_threads: int = 1,
) -> PlanResult:
    """Plan which experts get copies and on which rank every copy sits.

    The result places every expert, none twice on a rank unless that is allowed, and is the same for the
    same input. An expert's load is taken to be split evenly over its copies.

    Args:
        load: tokens of each logical expert, [L, E] or [steps, L, E]. With several steps ``balanced`` plans for
            the sum over steps of each step's hottest rank, with short histories drawn towards their mean; steps
            beyond 16 are added up to at most 16 windows. The other policies plan for the sum of the steps.
        ep_size: R.
        num_redundant_experts: P − E, per layer, over all ranks. Where neither this nor ``num_physical_experts`` is
            given, that of ``current``, and without it the least with which P divides by ``ep_size``: see
            `least_redundancy`.
        num_physical_experts: P, which says the same: slots of one layer over all ranks, a multiple of ``ep_size`` from
            E to E · ep_size (with ``allow_duplicates`` the other policies take more).
        policy: one of `POLICY_NAMES`, or ``reference``. ``balanced`` searches until a lower bound says that it is good enough.
            ``deepseek`` plans ``deepseek_hierarchical`` where the groups divide by the nodes, else
            ``deepseek_global``, as DeepSeek EPLB does. ``reference`` plans as ``balanced`` does at the default
            tolerance, only slower: its code (`expert_maps.reference`) is written to be read.
        num_groups: the router's expert groups; must divide E.
        num_nodes: servers; must divide ``ep_size``, and the groups by it. Each group's experts stay on one node, and
            every node has as many groups and slots; what that costs says `PlanResult.cost_of_groups`. Groups that do
            not divide by the nodes are refused, except by ``deepseek`` (see there), and by ``deepseek_global``, which
            looks at neither.
        tolerance: ``balanced`` stops a layer at a gap of this fraction, more than 0 and at most 1; None for
            0.0004. From 0.005 on it searches less and aims at nine tenths of it; below the default it also tries random
            restarts, as it always does up to 128 slots. With several steps it says only how the search starts.
        current: the placement in use, or a result, of the same counts, from which ``balanced`` starts: an expert that
            stays on its rank keeps its slot. Only where it cannot reach the tolerance from there does it plan anew,
            and then names the ranks so that little moves. A layer that keeps the rules (no expert twice on a rank, groups
            on nodes) never gets hotter under a load of one step; one that breaks them is put right first, and can: see
            `PlanResult.mended`.
        max_moves: slots of a layer that may receive another expert, beyond those that must; None for any number.
            Needs ``current``. None must where it has the counts that are planned for, so it is how many slots change at
            most; an expert twice on a rank, which must go, is refused here.
        allow_uneven: accept a P that ``ep_size`` does not divide: the first ranks (of each node) get one slot
            more. Only ``balanced`` can.
        allow_duplicates: let a policy put an expert twice on a rank, where its algorithm does; then
            ``deepseek`` is DeepSeek EPLB's own answer, wasted copies included. ``balanced`` never does.
        certify: whether ``balanced`` also seeks dear lower bounds, where the cheap ones leave a layer above the tolerance. The
            plan is the same. Cheap are the mean of the ranks (of the hottest node), the pigeonhole principle for large
            copies, and on up to 32 slots a short try of all placements; dear are a Lagrangian bound for two slots a rank
            and a long try of all placements.
        objective: what the hottest rank has least of. ``tokens``; or ``activated``, for decode: the slots that a batch
            is expected to activate there (`PlanResult.activation`), by ``balanced`` and from scratch.
        batch: what a batch of decode is, with ``activated``; see `expert_maps.activation.Batch`.
        progress: called with (layers planned, L) as the work goes on.
        num_threads: on how many threads ``balanced`` plans layers at a time; the plan is the same.

    Returns:
        The placement with its rank loads and lower bound per layer.

    Raises:
        LoadError: the load has a wrong shape or type, or a NaN, infinite or negative value.
        LayoutError: an unknown policy, an option that the policy does not have, counts for which no placement
            exists, or a ``current`` that ``max_moves`` does not allow to put right.
        ExpertMapsError: the compiled planner is missing.
    """
    name = as_policy(policy)
    trace = as_load(load)
    present = None if current is None else as_placement(current, "current")
    slots = as_physical(
        trace.num_experts, ep_size, num_redundant_experts, num_physical_experts, allow_uneven=allow_uneven
    )
    if slots is None and present is not None:
        slots = present.num_physical_experts
    if slots is None:
        slots = trace.num_experts + least_redundancy(trace.num_experts, ep_size)
    asked = Cluster(slots, ep_size, num_groups, num_nodes, allow_duplicates, allow_uneven)
    cluster = check_cluster(trace.num_layers, trace.num_experts, asked)
    aim = Asked(objective, batch)
    aim.check(trace, cluster, name, {"current": present, "max_moves": max_moves, "certify": certify or None})
    shown = progress if batch is None else None
    threads = as_count("num_threads", num_threads, 1, _MOST_THREADS, LayoutError)
    request = _Request(trace, cluster, tolerance, present, max_moves, certify, shown, threads)
    result = _PLANNERS[name](name, request)
    return result if batch is None else plan_by_activation(result, batch, cluster, tolerance, progress)


@dataclass(frozen=True)
class _Request:
    """What `plan` is asked for, with counts that have been checked."""

    trace: ExpertLoad
    cluster: Cluster
    tolerance: float | None
    current: Placement | None
    max_moves: int | None
    certify: bool
    progress: Progress | None
    num_threads: int


def _search(_: PolicyName, asked: _Request) -> PlanResult:
    """Plan by `balanced`, which has all options."""
    check_groups(asked.cluster)
    present = asked.current
    start = None if present is None else start_from(present, asked.trace, asked.cluster, asked.max_moves)
    if start is None and asked.max_moves is not None:
        msg = f"max_moves is {asked.max_moves!r}; expected it with current, the placement whose slots are counted"
        raise LayoutError(msg)
    result = plan_balanced(
        asked.trace,
        asked.cluster,
        asked.tolerance,
        start,
        asked.progress,
        certify=asked.certify,
        num_threads=asked.num_threads,
    )
    return result if present is None else replace(result, moves=metrics.moves(present, result.placement))


def _by_sum(name: PolicyName, asked: _Request) -> PlanResult:
    """Plan by a policy that knows a sum of loads only."""
    _refuse_options(
        name,
        asked.cluster,
        tolerance=asked.tolerance,
        current=asked.current,
        max_moves=asked.max_moves,
        certify=asked.certify or None,
        num_threads=None if asked.num_threads == 1 else asked.num_threads,
    )
    return _plan_by_sum(name, asked.trace, asked.cluster, asked.progress)


_PLANNERS: dict[PolicyName, Callable[[PolicyName, _Request], PlanResult]] = {
    "balanced": _search,
    **dict.fromkeys(POLICIES, _by_sum),
}


def plan_balanced(
    trace: ExpertLoad,
    cluster: Cluster,
    tolerance: float | None,
    start: Start | None = None,
    progress: Progress | None = None,
    *,
    certify: bool = False,
    num_threads: int = 1,
) -> PlanResult:
    """Plan by `balanced`; ``cluster`` has been checked.

    Raises:
        LayoutError: as `plan`.
    """
    check_counts(trace.num_experts, cluster)
    gap = DEFAULT_TOLERANCE if tolerance is None else as_tolerance(tolerance)

    cancelled = ctypes.c_int32(0) if num_threads > 1 else None

    def plan_block(block: slice) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        whole = block.start == 0 and block.stop >= trace.num_layers
        part = trace if whole else ExpertLoad(trace.counts[:, block])
        here = start if start is None or whole else replace(start, experts=start.experts[block])
        return balanced(
            part, cluster, gap, here, certify=certify, cancelled=cancelled, first_layer=block.start
        )

    def cancel() -> None:
        if cancelled is not None:
            cancelled.value = 1

    work = cluster.num_physical_experts * trace.num_experts
    parts = in_blocks(plan_block, trace.num_layers, work, progress, num_threads, cancel)
    rows, bound = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    placement = Placement._from_checked(  # noqa: SLF001 - checked by the planner
        rows, trace.num_experts, cluster.slots_per_rank.astype(np.int32)
    )
    return PlanResult(
        placement, "balanced", trace, bound, _origin=Origin(cluster, _search_anew, tolerance, start)
    )


def _search_anew(result: PlanResult, origin: Origin, progress: Progress | None) -> PlanResult:
    """Plan as `balanced` did, without groups and nodes; see `PlanResult.without_groups`."""
    return plan_balanced(result.load, _ungrouped(origin), origin.tolerance, origin.start, progress)


def _by_sum_anew(result: PlanResult, origin: Origin, progress: Progress | None) -> PlanResult:
    """Plan as another policy did, without groups and nodes."""
    name: PolicyName = "deepseek_global" if result.policy == "deepseek_hierarchical" else result.policy
    return _plan_by_sum(name, result.load, _ungrouped(origin), progress)


def _ungrouped(origin: Origin) -> Cluster:
    return replace(origin.cluster, num_groups=1, num_nodes=1)


def _plan_by_sum(
    name: PolicyName, trace: ExpertLoad, cluster: Cluster, progress: Progress | None
) -> PlanResult:
    work = cluster.num_physical_experts * trace.num_experts
    parts = in_blocks(
        lambda block: POLICIES[name](trace.total[block], cluster), trace.num_layers, work, progress
    )
    rows = np.concatenate(parts)
    placement = Placement(
        rows,
        cluster.ep_size,
        num_logical_experts=trace.num_experts,
        allow_duplicates=cluster.allow_duplicates,
    )
    mean = trace.total.sum(axis=1) / cluster.ep_size
    return PlanResult(placement, name, trace, mean, _origin=Origin(cluster, _by_sum_anew))


def as_policy(policy: str) -> PolicyName:
    """Return the policy's name.

    Raises:
        LayoutError: there is none of that name.
    """
    for name in EVERY_POLICY:
        if name == policy:
            return name
    msg = f"policy is {policy!r}; expected one of {', '.join(EVERY_POLICY)}"
    raise LayoutError(msg)


def _refuse_options(policy: PolicyName, cluster: Cluster, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            found = "given" if isinstance(value, Placement) else repr(value)
            msg = f"{name} is {found}; expected none with policy {policy!r}: only 'balanced' has it"
            raise LayoutError(msg)
    if cluster.num_physical_experts % cluster.ep_size:
        msg = (
            f"num_physical_experts is {cluster.num_physical_experts}; expected a multiple of ep_size "
            f"{cluster.ep_size} with policy {policy!r}: only 'balanced' plans uneven slots"
        )
        raise LayoutError(msg)


__all__ = ["PlanResult", "plan"]
