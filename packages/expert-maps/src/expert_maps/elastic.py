# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`rescale`: from a placement to one on fewer or more ranks, with as few moves as possible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps._words import counted
from expert_maps.counts import as_physical, check_cluster, check_groups
from expert_maps.errors import LayoutError
from expert_maps.load import as_load
from expert_maps.metrics import Moves
from expert_maps.placement import as_placement
from expert_maps.planning import plan_balanced
from expert_maps.policies._broken import broken_layers
from expert_maps.policies.base import Cluster, Start
from expert_maps.results import PlanResult
from expert_maps.validation import as_count, as_index

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement, PlacementLike
    from expert_maps.planning import Progress

    Int32Array = NDArray[np.int32]


# Of all layers together, see `Start.effort`: a call ends within ten seconds on one core, also with 300 layers of 512 experts on
# 2,048 slots, for which steps were sought for minutes. It is divided among the layers, whatever they need, so that a layer's plan
# depends on no other's. Tuned on 64 ranks given up to 56, log-normal loads of sigma 1 and 2.
_EFFORT = 120_000_000


def rescale(  # noqa: PLR0913 - options by keyword
    current: PlacementLike,
    load: ArrayLike | ExpertLoad,
    *,
    ep_size: int | None = None,
    failed_ranks: Iterable[int] = (),
    num_redundant_experts: int | None = None,
    num_physical_experts: int | None = None,
    num_groups: int = 1,
    num_nodes: int = 1,
    tolerance: float | None = None,
    max_moves: int | None = 0,
    allow_uneven: bool = False,
    certify: bool = False,
    progress: Progress | None = None,
) -> PlanResult:
    """Plan for the ranks that are left, or for more of them, from the placement in use.

    The ranks that stay keep their order and are numbered anew from 0; new ranks come after them. Copies stay where
    they are as far as the slots allow, and every expert survives. What must move anyway is placed where it balances
    the load best: experts that were on lost ranks only, and the contents of new slots. Where nothing changes, nothing moves.

    The search for the best places is limited, by steps and not by time, so that a call takes seconds and equal calls give equal
    plans: with very many layers and slots, more could be gained.

    Args:
        current: the placement in use, or a result, of L layers and E experts.
        load: as for `plan`.
        ep_size: ranks afterwards; None for those that do not fail. Fewer: the last ones are given up.
        failed_ranks: ranks whose copies are lost.
        num_redundant_experts: P − E afterwards. Where neither this nor ``num_physical_experts`` is given, each rank
            has as many slots as now.
        num_physical_experts: P, slots of a layer afterwards, which says the same.
        num_groups: as for `plan`.
        num_nodes: as for `plan`.
        tolerance: as for `plan`.
        max_moves: slots of a layer that may receive another expert, beyond those that must; None for any number. As for
            `plan`, but 0 where it is not given. What must: experts of which no copy is left, new slots, and a second
            copy on a rank, which must go. With groups on nodes, a placement that has a group on several of them can only
            be put right without a limit.
        allow_uneven: as for `plan`; where neither ranks nor slots change, unequal ranks keep as many slots as they have.
        certify: as for `plan`.
        progress: called with (layers planned, L) as the work goes on.

    Returns:
        The plan; its ``moves`` are bool [L, P] over the new slots, ``fetched`` those whose rank did not hold the expert.

    Raises:
        LoadError: the load is invalid, or not of the placement's layers and experts.
        LayoutError: a rank does not exist, none is left, or the counts allow no placement.
    """
    current, trace = as_placement(current, "current"), as_load(load)
    metrics.check_shape(current, trace)
    kept = _surviving(current, failed_ranks)
    ranks = len(kept) if ep_size is None else as_count("ep_size", ep_size, 1, error=LayoutError)
    kept = kept[:ranks]
    slots = as_physical(
        trace.num_experts, ranks, num_redundant_experts, num_physical_experts, allow_uneven=allow_uneven
    )
    if slots is None:
        slots = _same_slots(current, kept, ranks)
    asked = Cluster(slots, ranks, num_groups, num_nodes, allow_uneven=allow_uneven)
    cluster = check_cluster(trace.num_layers, trace.num_experts, asked)
    check_groups(cluster)
    if max_moves is not None:
        max_moves = as_count("max_moves", max_moves, 0, error=LayoutError)
    held = np.zeros(ranks, dtype=np.int32)
    held[: len(kept)] = current.slots_per_rank[kept]
    stays = np.concatenate([np.arange(*current.rank_offsets[rank : rank + 2]) for rank in kept])
    experts = current.physical_to_logical[:, stays]
    start = Start(experts, held, max_moves, max(_EFFORT // trace.num_layers, 1))
    if _stays_as_it_is(current, kept, cluster, start):
        mean = trace.total.sum(axis=1) / ranks
        result = PlanResult(current, "balanced", trace, mean)
        if progress is not None:
            progress(trace.num_layers, trace.num_layers)
    else:
        result = plan_balanced(trace, cluster, tolerance, start, progress, certify=certify)
    return replace(result, moves=_moves(_padded(experts, held), result.placement))


def _surviving(current: Placement, failed_ranks: Iterable[int]) -> NDArray[np.intp]:
    given: object = failed_ranks
    if isinstance(given, str) or not isinstance(given, Iterable):
        msg = f"failed_ranks is {given!r:.200}; expected several ranks, such as [3]"
        raise LayoutError(msg)
    failed = {as_index("failed rank", rank, current.ep_size, error=LayoutError) for rank in failed_ranks}
    kept = np.array([rank for rank in range(current.ep_size) if rank not in failed], dtype=np.intp)
    if not kept.size:
        msg = f"failed_ranks are all {current.ep_size}; expected at least one rank that is left"
        raise LayoutError(msg)
    return kept


def _same_slots(current: Placement, kept: NDArray[np.intp], ranks: int) -> int:
    """As many slots as the ranks that stay have now, and as many on a new one as the largest has."""
    per_rank = int(current.slots_per_rank.max())
    total = int(current.slots_per_rank[kept].sum()) + per_rank * (ranks - len(kept))
    if total < current.num_logical_experts:
        needed = -(-current.num_logical_experts // ranks)
        msg = (
            f"ep_size is {ranks} with {counted(per_rank, 'slot')} a rank, {total} in all; expected at least "
            f"{current.num_logical_experts}, one for each expert: give num_physical_experts, {needed * ranks} or more"
        )
        raise LayoutError(msg)
    return total


def _stays_as_it_is(current: Placement, kept: NDArray[np.intp], cluster: Cluster, start: Start) -> bool:
    """Say whether nothing is asked for that the placement in use is not, though its ranks have slots as no plan gives them.

    (Where they have them as plans do, the planner finds so by itself.)
    """
    return (
        start.max_moves == 0
        and cluster.allow_uneven
        and len(kept) == current.ep_size == cluster.ep_size
        and current.num_physical_experts == cluster.num_physical_experts
        and not np.array_equal(current.slots_per_rank, cluster.slots_per_rank)
        and not broken_layers(start, current.num_logical_experts, cluster).any()
    )


def _padded(experts: Int32Array, held: Int32Array) -> Int32Array:
    """Return the experts that each rank holds, int32 [L, R, X], padded with −1."""
    padded = np.full((len(experts), len(held), int(held.max())), -1, dtype=np.int32)
    padded[:, np.arange(padded.shape[2]) < held[:, None]] = experts
    return padded


def _moves(held: Int32Array, after: Placement) -> Moves:
    """Compare the new slots with what stood in them, or, beyond what a rank had, with nothing."""
    index = after.slot_index
    before = np.full(after.physical_to_logical.shape, -1, dtype=np.int32)
    old = index < held.shape[2]
    before[:, old] = held[:, after.slot_rank[old], index[old]]
    arrived = metrics.arrivals(held, after)
    return Moves(before != after.physical_to_logical, arrived)
