# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`plan_per_layer`: redundant experts where they help most, each layer its own number, within the memory of equal ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps._frozen import Frozen, lazy
from expert_maps.budgeting import cheapest, spend
from expert_maps.counts import as_physical, check_cluster, check_groups, least_redundancy
from expert_maps.errors import LayoutError
from expert_maps.layered_placement import LayeredPlacement
from expert_maps.load import ExpertLoad, as_load
from expert_maps.placement import Placement
from expert_maps.planning import plan_balanced
from expert_maps.policies import DEFAULT_TOLERANCE
from expert_maps.policies.base import Cluster
from expert_maps.results import Balance
from expert_maps.validation import as_tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Float64Array = NDArray[np.float64]
    Int64Array = NDArray[np.int64]
    Progress = Callable[[int, int], object]

SERVED_BY = (
    "omni-infer's patterns carry other slots in every layer (`convert --to omni`); vLLM, vllm-ascend, SGLang and "
    "TensorRT-LLM need as many in each"
)


@dataclass(frozen=True, eq=False, repr=False)
class PerLayerPlan(Balance, Frozen):
    """What `plan_per_layer` returns. Read-only; `expert_maps.evaluate` and the metrics take it.

    Attributes:
        placement: the plan; ranks own as many slots as each other within a layer, not in every layer.
        equal: the plan with as many slots in every layer, as many as the budget allows: what servers take.
        load: what was planned for.
        lower_bound: float64 [L], tokens: no placement of so many slots in this layer has a hottest rank below it.
        budget: slots of a rank over all layers, which the plan does not exceed.
        least_cost: tokens: no way to spend the budget, and no placement, has a smaller sum over layers (and steps) of the
            hottest rank.
        enough: slots of a rank over all layers with which a plan per layer was found that carries no more than ``equal``, to the
            tolerance.
    """

    placement: LayeredPlacement
    equal: Placement
    load: ExpertLoad
    lower_bound: Float64Array
    budget: int
    least_cost: float
    enough: int

    @lazy
    def rank_load(self) -> Float64Array:
        """float64 [L, R]: tokens of each rank under the planned load, summed over its steps."""
        return metrics.rank_load(self.placement, self.load)

    @lazy
    def slots_per_layer(self) -> Int64Array:
        """int64 [L]: slots of a rank."""
        return self.placement.slots_per_rank[:, 0].astype(np.int64)

    @property
    def is_equal(self) -> bool:
        """Whether all layers have as many slots, so that every server takes it: `LayeredPlacement.layers` are alike then."""
        return bool((self.slots_per_layer == self.slots_per_layer[0]).all())

    @lazy
    def cost(self) -> float:
        """Tokens: the sum over layers (and steps) of the hottest rank, which is what serving waits for."""
        return float(metrics.step_peaks(self.placement, self.load).sum())

    @lazy
    def equal_cost(self) -> float:
        """The same of the plan with as many slots in every layer."""
        return float(metrics.step_peaks(self.equal, self.load).sum())

    @property
    def gap(self) -> float:
        """How much less any way to spend the budget could carry at most, as a fraction of that."""
        return max(self.cost / self.least_cost - 1, 0.0) if self.least_cost > 0 else 0.0

    def summary(self) -> str:
        """Return what there is to know in a few lines."""
        spent, slots = int(self.slots_per_layer.sum()), np.unique(self.slots_per_layer, return_counts=True)
        kinds = ", ".join(f"{size} in {layers}" for size, layers in zip(*slots, strict=True))
        gain = 1 - self.cost / self.equal_cost if self.equal_cost > 0 else 0.0
        each = int(self.equal.slots_per_rank[0])
        base = -(-self.load.num_experts // self.placement.ep_size) * self.load.num_layers
        lines = [f"slots of a rank, by layers: {kinds}; {spent} of a budget of {self.budget} over all layers"]
        lines += [
            f"hottest ranks, sum over layers: {self.cost:.6g} tokens, {gain:.2%} less than with {each} slots in every layer"
        ]
        lines += [f"gap to a proved lower bound over all ways to spend the budget: {self.gap:.3%}"]
        if each * self.load.num_layers > base:
            lines += [
                f"redundant slots of a rank, over all layers: {each * self.load.num_layers - base} with {each} slots in every layer; the same is reached with {self.enough - base}"
            ]
        lines += ["all layers have as many slots: every server takes it" if self.is_equal else SERVED_BY]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Name the counts and what it is worth; the arrays would flood a log."""
        return (
            f"PerLayerPlan(num_layers={self.load.num_layers}, slots={int(self.slots_per_layer.min())}…"
            f"{int(self.slots_per_layer.max())}, budget={self.budget}, cost={self.cost:.6g}, equal_cost={self.equal_cost:.6g})"
        )


def plan_per_layer(
    load: ArrayLike | ExpertLoad,
    *,
    ep_size: int,
    num_redundant_experts: int | None = None,
    num_physical_experts: int | None = None,
    num_groups: int = 1,
    num_nodes: int = 1,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> PerLayerPlan:
    """Plan by ``balanced``, and choose how many slots each layer has, within the memory of equal slots.

    What is least is the sum over layers, which run one after another, of the hottest rank's tokens; with several steps the
    sum over steps too. Every rank of a layer has as many slots. Of the ways to spend the budget, none does better with these
    plans: dynamic programming tries all of them, and plans a layer with more slots only where that could help.

    Args:
        load: tokens of each logical expert, [L, E] or [steps, L, E].
        ep_size: R.
        num_redundant_experts: P − E, the mean over layers: the budget is L · P slots. It need not divide by ``ep_size``. If
            neither this nor the next is given, the least with which equal slots divide.
        num_physical_experts: P, which says the same.
        num_groups: as for `expert_maps.plan`.
        num_nodes: as for `expert_maps.plan`.
        tolerance: as for `expert_maps.plan`; a layer this near to its mean is given no more slots.
        progress: called with (plans of a layer made, those that may be needed as far as is known).

    Raises:
        LoadError: the load is invalid.
        LayoutError: counts for which there is no placement; also a budget with which no equal slots divide.
        ExpertMapsError: the compiled planner is missing.
    """
    trace = as_load(load)
    experts = trace.num_experts
    slots = as_physical(experts, ep_size, num_redundant_experts, num_physical_experts, allow_uneven=True)
    if slots is None:
        slots = experts + least_redundancy(experts, ep_size)
    cluster = check_cluster(
        trace.num_layers, experts, Cluster(slots, ep_size, num_groups, num_nodes, allow_uneven=True)
    )
    check_groups(cluster)
    gap = DEFAULT_TOLERANCE if tolerance is None else as_tolerance(tolerance)
    fewest, most = -(-experts // ep_size), experts // (num_nodes if cluster.is_hierarchical else 1)
    budget = trace.num_layers * slots // ep_size
    if slots // ep_size < fewest:
        msg = (
            f"num_physical_experts is {slots}, which gives a rank {slots // ep_size} slots in each layer; expected at least "
            f"{fewest * ep_size}, {fewest} slots for its part of {experts} experts"
        )
        raise LayoutError(msg)
    plans = _Plans(trace, cluster, gap, fewest, most, progress)
    return plans.best(budget, slots // ep_size)


@dataclass
class _Plans:
    """Plans of layers with several numbers of slots, made when they are first needed.

    Attributes:
        trace: [steps, L, E].
        cluster: ranks, groups and nodes.
        tolerance: of a plan.
        fewest: slots of a rank that a layer must have.
        most: slots of a rank that a layer can use.
        progress: as for `plan_per_layer`.
        made: (layer, units beyond the fewest) → slots of the layer [P], what they cost, and the lower bound.
    """

    trace: ExpertLoad
    cluster: Cluster
    tolerance: float
    fewest: int
    most: int
    progress: Progress | None
    made: dict[tuple[int, int], tuple[NDArray[np.int32], float, float]] = field(default_factory=dict)

    def best(self, budget: int, equal: int) -> PerLayerPlan:
        """Return the cheapest way to spend a budget, beside equal slots: slots of a rank, over all layers and in each."""
        layers, ranks = self.trace.num_layers, self.cluster.ep_size
        units = budget - layers * self.fewest
        options = min(units, self.most - self.fewest) + 1
        same = np.full(layers, min(equal, self.most) - self.fewest)
        self._plan(same)
        # 1. What is not planned yet may be as good as the mean of the ranks: plan what is chosen so, until all of it is.
        while True:
            chosen = spend(self._costs(options, unknown=False), units)
            if not self._plan(chosen):
                break
        # 2. Prove it; and find how little is enough, of what was planned.
        known, bound = self._costs(options, unknown=True), self._bounds(options)
        limit = float(known[np.arange(layers), same].sum()) * (1 + self.tolerance)
        enough = int(np.argmax(cheapest(known, units) <= limit)) + layers * self.fewest
        rows = [self.made[layer, int(more)] for layer, more in enumerate(chosen)]
        alike = np.stack([self.made[layer, int(more)][0] for layer, more in enumerate(same)])
        return PerLayerPlan(
            LayeredPlacement(tuple(self._placed(row[0][None], ranks) for row in rows)),
            self._placed(alike, ranks),
            self.trace,
            np.array([row[2] for row in rows]),
            budget,
            float(cheapest(bound, units)[units]),
            enough,
        )

    def _placed(self, rows: NDArray[np.int32], ranks: int) -> Placement:
        return Placement(rows, ranks, num_logical_experts=self.trace.num_experts)

    @property
    def _mean(self) -> Float64Array:
        """float64 [L]: what every placement's hottest rank carries at least."""
        mean: Float64Array = self.trace.total.sum(axis=1) / self.cluster.ep_size
        return mean

    def _costs(self, options: int, *, unknown: bool) -> Float64Array:
        """Return float64 [L, options]: what plans cost; those not made yet the mean, or, if unknown, infinity.

        Where a plan is within the tolerance of the mean, more slots are not worth their memory.
        """
        costs = np.full((self.trace.num_layers, options), np.inf)
        if not unknown:
            costs[:] = self._mean[:, None]
        for (layer, more), (_, cost, _) in sorted(self.made.items()):
            costs[layer, more] = cost
            if cost <= self._mean[layer] * (1 + self.tolerance):
                costs[layer, more + 1 :] = cost if not unknown else np.inf
        for (layer, more), (_, cost, _) in self.made.items():
            costs[layer, more] = cost
        return costs

    def _bounds(self, options: int) -> Float64Array:
        """Return float64 [L, options]: what no plan with so many slots costs less than."""
        bounds = np.tile(self._mean[:, None], options)
        for (layer, more), (_, _, bound) in self.made.items():
            bounds[layer, more] = max(bound, bounds[layer, more])
        return bounds

    def _plan(self, wanted: Int64Array) -> bool:
        """Plan each layer with so many units more than it must have, where that is not done; whether any was."""
        missing = [layer for layer, more in enumerate(wanted.tolist()) if (layer, more) not in self.made]
        for more in sorted({int(wanted[layer]) for layer in missing}):
            layers = [layer for layer in missing if wanted[layer] == more]
            part = ExpertLoad(self.trace.counts[:, layers])
            slots = (self.fewest + more) * self.cluster.ep_size
            cluster = Cluster(slots, self.cluster.ep_size, self.cluster.num_groups, self.cluster.num_nodes)
            result = plan_balanced(part, cluster, self.tolerance)
            costs = metrics.step_peaks(result, part).sum(axis=0)
            for index, layer in enumerate(layers):
                row = result.placement.physical_to_logical[index]
                self.made[layer, more] = (row, float(costs[index]), float(result.lower_bound[index]))
            if self.progress is not None:
                self.progress(len(self.made), max(len(self.made), 2 * self.trace.num_layers))
        return bool(missing)


__all__ = ["SERVED_BY", "PerLayerPlan", "plan_per_layer"]
