# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`plan`: from an expert load to a placement, by any policy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits, metrics
from expert_maps.errors import LayoutError
from expert_maps.load import ExpertLoad
from expert_maps.placement import Placement
from expert_maps.policies import DEFAULT_POLICY, DEFAULT_TOLERANCE, POLICIES, POLICY_NAMES, PolicyName
from expert_maps.policies._broken import broken_layers
from expert_maps.policies.balanced import Start, balanced, check_counts
from expert_maps.policies.base import Cluster
from expert_maps.validation import as_count, as_tolerance, nearest_multiples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

    BoolArray = NDArray[np.bool_]
    Float64Array = NDArray[np.float64]
    Progress = Callable[[int, int], object]

# Layers are planned in blocks: large enough that the overhead of a call is spread over many of them, small
# enough that progress can be shown.
_LAYERS_PER_BLOCK = 64


@dataclass(frozen=True)
class PlanResult:
    """What `plan` and `rescale` return.

    Attributes:
        placement: the plan.
        policy: the name of the policy that made it.
        load: what was planned for.
        lower_bound: float64 [L], tokens: no placement of these counts, with groups on nodes none that keeps each
            group on one node, has a hottest rank below it. `balanced` proves it; for the other policies it is the mean rank load.
        moves: what changes from the placement that was planned from; None where there was none.
    """

    placement: Placement
    policy: PolicyName
    load: ExpertLoad
    lower_bound: Float64Array
    moves: metrics.Moves | None = None
    _start: tuple[Start, Cluster] | None = field(default=None, repr=False)

    @cached_property
    def mended(self) -> BoolArray:
        """Bool [L]: layers in which the placement that was planned from breaks a rule that the plan keeps.

        A group on several nodes, more groups on a node than its share, or an expert twice on a rank. With a load of
        one step only such a layer can have a hotter rank than before.
        """
        if self._start is None:
            return np.zeros(self.placement.num_layers, dtype=bool)
        start, cluster = self._start
        return broken_layers(start, self.placement.num_logical_experts, cluster)

    @cached_property
    def rank_load(self) -> Float64Array:
        """float64 [L, R]: tokens of each rank under the planned load, summed over its steps."""
        return metrics.rank_load(self.placement, self.load)

    @cached_property
    def balancedness(self) -> Float64Array:
        """float64 [L]: mean / max rank load; 1 is perfect, also for a layer without load."""
        return metrics.balancedness_of(self.rank_load)

    @property
    def max_rank_load(self) -> Float64Array:
        """float64 [L]: tokens of the hottest rank."""
        peak: Float64Array = self.rank_load.max(axis=1)
        return peak

    @property
    def peak_to_mean(self) -> Float64Array:
        """float64 [L]: max / mean rank load, at least 1."""
        return 1.0 / self.balancedness

    @property
    def gap(self) -> Float64Array:
        """float64 [L]: max rank load / lower bound − 1: how much a better plan could gain at most.

        With several steps of load it says little: then not the hottest rank of the sum is planned for.
        """
        return metrics.gap_of(self.max_rank_load, self.lower_bound)


def plan(  # noqa: PLR0913 - options by keyword
    load: ArrayLike | ExpertLoad,
    *,
    num_physical_experts: int,
    ep_size: int,
    policy: PolicyName | str = DEFAULT_POLICY,
    num_groups: int = 1,
    num_nodes: int = 1,
    tolerance: float | None = None,
    current: Placement | None = None,
    max_moves: int | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
    progress: Progress | None = None,
) -> PlanResult:
    """Plan which experts get copies and on which rank every copy sits.

    The result places every expert, none twice on a rank unless that is allowed, and is the same for the
    same input. An expert's load is taken to be split evenly over its copies.

    Args:
        load: tokens of each logical expert, [L, E] or [steps, L, E]. With several steps ``balanced`` plans for
            the sum over steps of each step's hottest rank, with short histories drawn towards their mean; steps
            beyond 16 are added up to at most 16 windows. The other policies plan for the sum of the steps.
        num_physical_experts: P, slots of one layer over all ranks: a multiple of ``ep_size``, from E to
            E · ep_size (with ``allow_duplicates`` the other policies take more).
        ep_size: R.
        policy: one of `POLICY_NAMES`. ``balanced`` searches until a lower bound says that it is good enough.
            ``deepseek`` plans ``deepseek_hierarchical`` where the groups divide by the nodes, else
            ``deepseek_global``, as DeepSeek EPLB does.
        num_groups: the router's expert groups; must divide E.
        num_nodes: servers; must divide ``ep_size``. Where the groups divide by the nodes, ``balanced`` keeps each
            group's experts on one node, and every node has as many groups and slots.
        tolerance: ``balanced`` stops a layer at a gap of this fraction, more than 0 and at most 1; None for
            0.0004. From 0.005 on it searches less and aims at nine tenths of it; below the default it also tries random
            restarts, as it always does up to 128 slots. With several steps it says only how the search starts.
        current: the placement in use, of the same counts, from which ``balanced`` starts: an expert that
            stays on its rank keeps its slot. Only where it cannot reach the tolerance from there does it plan anew,
            and then names the ranks so that little moves. A layer that keeps the rules (no expert twice on a rank, groups
            on nodes) never gets hotter under a load of one step; one that breaks them is put right first, and can: see
            `PlanResult.mended`.
        max_moves: slots of a layer that may change, at most; None for any number. Needs ``current``, without an
            expert twice on a rank.
        allow_uneven: accept a P that ``ep_size`` does not divide: the first ranks (of each node) get one slot
            more. Only ``balanced`` can.
        allow_duplicates: let a policy put an expert twice on a rank, where its algorithm does; then
            ``deepseek`` is DeepSeek EPLB's own answer, wasted copies included. ``balanced`` never does.
        progress: called with (layers planned, L) as the work goes on.

    Returns:
        The placement with its rank loads and lower bound per layer.

    Raises:
        LoadError: the load has a wrong shape or type, or a NaN, infinite or negative value.
        LayoutError: an unknown policy, an option that the policy does not have, counts for which no placement
            exists, or a ``current`` that ``max_moves`` does not allow to put right.
        ExpertMapsError: the compiled planner is missing.
    """
    name = _as_policy(policy)
    trace = load if isinstance(load, ExpertLoad) else ExpertLoad(load)
    asked = Cluster(num_physical_experts, ep_size, num_groups, num_nodes, allow_duplicates, allow_uneven)
    cluster = check_cluster(trace.num_experts, asked, trace.num_layers)
    if name != "balanced":
        _refuse_options(name, cluster, tolerance=tolerance, current=current, max_moves=max_moves)
        return _plan_by_sum(name, trace, cluster, progress)
    start = None if current is None else _start(current, trace, cluster, max_moves)
    if start is None and max_moves is not None:
        msg = f"max_moves is {max_moves!r}; expected it with current, the placement whose slots are counted"
        raise LayoutError(msg)
    result = plan_balanced(trace, cluster, tolerance, start, progress)
    if current is None:
        return result
    return replace(result, moves=metrics.moves(current, result.placement))


def plan_balanced(
    trace: ExpertLoad,
    cluster: Cluster,
    tolerance: float | None,
    start: Start | None = None,
    progress: Progress | None = None,
) -> PlanResult:
    """Plan by `balanced`; ``cluster`` has been checked.

    Raises:
        LayoutError: as `plan`.
    """
    check_counts(trace.num_experts, cluster)
    gap = DEFAULT_TOLERANCE if tolerance is None else as_tolerance(tolerance)
    parts = []
    for block in _blocks(trace.num_layers, progress):
        whole = block.start == 0 and block.stop >= trace.num_layers
        part = trace if whole else ExpertLoad(trace.counts[:, block])
        here = start if start is None or whole else Start(start.experts[block], start.held, start.max_moves)
        parts.append(balanced(part, cluster, gap, here))
    rows, bound = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    placement = Placement.from_checked(rows, trace.num_experts, cluster.slots_per_rank.astype(np.int32))
    origin = None if start is None else (start, cluster)
    return PlanResult(placement, "balanced", trace, bound, _start=origin)


def _plan_by_sum(
    name: PolicyName, trace: ExpertLoad, cluster: Cluster, progress: Progress | None
) -> PlanResult:
    rows = np.empty((trace.num_layers, cluster.num_physical_experts), dtype=np.int64)
    for block in _blocks(trace.num_layers, progress):
        rows[block] = POLICIES[name](trace.total[block], cluster)
    placement = Placement(
        rows,
        cluster.ep_size,
        num_logical_experts=trace.num_experts,
        allow_duplicates=cluster.allow_duplicates,
    )
    return PlanResult(placement, name, trace, trace.total.sum(axis=1) / cluster.ep_size)


def _blocks(num_layers: int, progress: Progress | None) -> Iterator[slice]:
    """Yield the layers in blocks, and tell the progress after each."""
    for start in range(0, num_layers, _LAYERS_PER_BLOCK):
        stop = min(start + _LAYERS_PER_BLOCK, num_layers)
        yield slice(start, stop)
        if progress is not None:
            progress(stop, num_layers)


def _as_policy(policy: str) -> PolicyName:
    for name in POLICY_NAMES:
        if name == policy:
            return name
    msg = f"policy is {policy!r}; expected one of {', '.join(POLICY_NAMES)}"
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


def _start(current: Placement, trace: ExpertLoad, cluster: Cluster, max_moves: int | None) -> Start:
    counts = (
        ("num_layers", trace.num_layers),
        ("num_logical_experts", trace.num_experts),
        ("ep_size", cluster.ep_size),
        ("num_physical_experts", cluster.num_physical_experts),
    )
    for name, planned in counts:
        if getattr(current, name) != planned:
            msg = (
                f"{name} of current is {getattr(current, name)}; expected {planned}, as planned "
                "(`rescale` goes from one number of ranks to another)"
            )
            raise LayoutError(msg)
    if not np.array_equal(current.slots_per_rank, cluster.slots_per_rank):
        msg = (
            f"slots_per_rank of current are {current.slots_per_rank.tolist()}; expected "
            f"{cluster.slots_per_rank.tolist()}, as planned"
        )
        raise LayoutError(msg)
    if max_moves is not None:
        max_moves = as_count("max_moves", max_moves, 0, error=LayoutError)
        _refuse_duplicates(current)
    return Start(current.physical_to_logical, cluster.slots_per_rank.astype(np.int32), max_moves)


def _refuse_duplicates(current: Placement) -> None:
    """Refuse a placement whose second copies cannot stay: replacing them is no question of a budget."""
    distinct = (current.global_expert_map() >= 0).sum(axis=2)  # [L, R]
    bad = np.argwhere(distinct < current.slots_per_rank)
    if bad.size:
        layer, rank = bad[0].tolist()
        msg = (
            f"current has an expert twice on rank {rank} in layer {layer}; expected every expert once on a rank "
            "where max_moves is given, because the second copy must go"
        )
        raise LayoutError(msg)


def check_cluster(num_experts: int, cluster: Cluster, num_layers: int = 1) -> Cluster:
    """Return the cluster with plain ints, or refuse counts for which no placement exists.

    Args:
        num_experts: E.
        cluster: the counts as they were given.
        num_layers: L.

    Raises:
        LayoutError: a count has the wrong type, or the counts contradict each other.
    """
    ep_size = as_count("ep_size", cluster.ep_size, 1, error=LayoutError)
    groups = as_count("num_groups", cluster.num_groups, 1, error=LayoutError)
    nodes = as_count("num_nodes", cluster.num_nodes, 1, error=LayoutError)
    slots = as_count("num_physical_experts", cluster.num_physical_experts, 1, error=LayoutError)
    limits.check_counts(
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
            f"{num_experts} experts at least once, and at most once on each of {ep_size} ranks"
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
        msg = f"num_groups is {groups}; expected a divisor of the {num_experts} experts"
        raise LayoutError(msg)
    if ep_size % nodes:
        msg = f"num_nodes is {nodes}; expected a divisor of ep_size {ep_size}"
        raise LayoutError(msg)
    return Cluster(slots, ep_size, groups, nodes, cluster.allow_duplicates, cluster.allow_uneven)
