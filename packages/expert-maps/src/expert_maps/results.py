# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`PlanResult`: a plan beside what it was made for; and what it has in common with other results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from expert_maps import metrics
from expert_maps._frozen import Frozen, lazy
from expert_maps._words import counted
from expert_maps.policies._broken import broken_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from expert_maps.activation import Activation
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement, PlacementLike
    from expert_maps.policies import PolicyName
    from expert_maps.policies.base import Cluster, Start

    BoolArray = NDArray[np.bool_]
    Float64Array = NDArray[np.float64]


class HasRankLoad(Protocol):
    """What knows the tokens of each rank."""

    @property
    def rank_load(self) -> Float64Array:
        """float64 [L, R]."""
        ...


class Balance:
    """What follows from the rank loads of a plan, of an evaluation and of weights."""

    @lazy
    def max_rank_load(self: HasRankLoad) -> Float64Array:
        """float64 [L]: tokens of the hottest rank."""
        peak: Float64Array = self.rank_load.max(axis=1)
        return peak

    @lazy
    def balancedness(self: HasRankLoad) -> Float64Array:
        """float64 [L]: mean / max rank load; 1 is perfect, also for a layer without load."""
        return metrics.balancedness_of(self.rank_load)

    @property
    def overall_balancedness(self: HasRankLoad) -> float:
        """The ratio of the sums over layers of mean and max rank load, as vLLM logs it."""
        return metrics.overall_of(self.rank_load)


@dataclass(frozen=True, eq=False)
class Origin:
    """What a plan was made from, so that it can be made again with something else.

    Attributes:
        cluster: what it was planned for.
        tolerance: as it was given.
        start: the placement that it started from; None where there was none.
        again: plans the same without groups and nodes.
    """

    cluster: Cluster
    again: Callable[[PlanResult, Origin, Callable[[int, int], object] | None], PlanResult]
    tolerance: float | None = None
    start: Start | None = None


@dataclass(frozen=True, eq=False, repr=False)
class PlanResult(Balance, Frozen):
    """What `plan` and `rescale` return. Read-only; functions that take a placement take it as well.

    Two are equal where placement, policy, load, lower bound, moves and activation are.

    Attributes:
        placement: the plan.
        policy: the name of the policy that made it.
        load: what was planned for.
        lower_bound: float64 [L], tokens: no placement of these counts, with groups on nodes none that keeps each
            group on one node, has a hottest rank below it. `balanced` proves it; for the other policies it is the mean
            rank load.
        moves: what changes from the placement that was planned from; None where there was none.
        activation: what the plan is worth by activated slots, where it was planned for those; None else.
    """

    placement: Placement
    policy: PolicyName
    load: ExpertLoad
    lower_bound: Float64Array
    moves: metrics.Moves | None = None
    activation: Activation | None = None
    _origin: Origin | None = field(default=None, compare=False)

    @lazy
    def mended(self) -> BoolArray:
        """Bool [L]: layers in which the placement that was planned from breaks a rule that the plan keeps.

        A group on several nodes, more groups on a node than its share, or an expert twice on a rank. With a load of
        one step only such a layer can have a hotter rank than before.
        """
        if self._origin is None or self._origin.start is None:
            return np.zeros(self.placement.num_layers, dtype=bool)
        return broken_layers(self._origin.start, self.placement.num_logical_experts, self._origin.cluster)

    @lazy
    def rank_load(self) -> Float64Array:
        """float64 [L, R]: tokens of each rank under the planned load, summed over its steps."""
        return metrics.rank_load(self.placement, self.load)

    @lazy
    def over_steps(self) -> float:
        """The ratio of the sums over steps and layers of mean and hottest rank; see `expert_maps.over_steps`."""
        return metrics.over_steps(self.placement, self.load)

    @lazy
    def peak_to_mean(self) -> Float64Array:
        """float64 [L]: max / mean rank load, at least 1."""
        return 1.0 / self.balancedness

    @lazy
    def gap(self) -> Float64Array:
        """float64 [L]: max rank load / lower bound − 1: how much a better plan could gain at most.

        With several steps of load it says little: then not the hottest rank of the sum is planned for.
        """
        return metrics.gap_of(self.max_rank_load, self.lower_bound)

    @property
    def keeps_groups(self) -> bool:
        """Whether each expert group was to stay on one node."""
        return (
            self._origin is not None
            and self._origin.cluster.is_hierarchical
            and self.policy != "deepseek_global"
        )

    def without_groups(self, progress: Callable[[int, int], object] | None = None) -> PlanResult:
        """Plan the same again as if experts had no groups and ranks no nodes; this result where it is so already.

        Args:
            progress: as for `plan`.

        Raises:
            LayoutError: the counts allow no such plan.
        """
        if self._origin is None or not self.keeps_groups:
            return self
        return self._origin.again(self, self._origin, progress)

    def cost_of_groups(self) -> float:
        """Return what it costs that groups stay on nodes: how much more the hottest ranks carry, as a fraction.

        By the sums over steps and layers, compared with `without_groups`; 0 where no groups were kept. A little below 0
        where the search was luckier with groups than without.
        """
        if not self.keeps_groups:
            return 0.0
        free = metrics.step_peaks(self.without_groups(), self.load).sum()
        return float(metrics.step_peaks(self, self.load).sum() / free - 1) if free > 0 else 0.0

    def summary(self) -> str:
        """Return what there is to know in a few lines."""
        return "\n".join(
            [
                f"{self.policy}: {describe_counts(self.placement)}",
                *describe_balance(self.balancedness, self.overall_balancedness),
                *(
                    [f"balancedness over {counted(self.load.num_steps, 'step')} {self.over_steps:.4f}"]
                    * (len(self.load) > 1)
                ),
                *self._proof(),
                *([] if self.moves is None else [self.moves.summary()]),
            ]
        )

    def _proof(self) -> list[str]:
        if self.activation is not None:
            return [self.activation.summary()]
        # With several steps it is not the sum that is planned for, and its gap would mislead.
        if self.policy != "balanced" or self.load.num_steps > 1:
            return []
        bound = float(self.lower_bound.sum())
        gap = max(float(self.max_rank_load.sum()) / bound - 1, 0.0) if bound > 0 else 0.0
        return [f"the hottest ranks carry {gap:.3%} more than a proved lower bound"]

    def plot(self, before: PlacementLike | None = None) -> Any:  # noqa: ANN401 - matplotlib may be absent
        """Draw balancedness and rank loads before and after.

        Args:
            before: what to compare with; None for the linear layout without redundant experts.

        Returns:
            A ``matplotlib.figure.Figure``; its ``savefig`` writes it.

        Raises:
            ExpertMapsError: matplotlib is not installed, or ``before`` is of other layers or experts.
        """
        from expert_maps import plots

        return plots.plot_plan(self, before)

    def __repr__(self) -> str:
        """Name the counts and how good it is; the arrays would flood a log."""
        placement = self.placement
        moved = "" if self.moves is None else f", changed={self.moves.num_changed}"
        return (
            f"PlanResult(policy={self.policy!r}, num_layers={placement.num_layers}, "
            f"num_logical_experts={placement.num_logical_experts}, "
            f"num_redundant_experts={placement.num_redundant_experts}, ep_size={placement.ep_size}, "
            f"overall_balancedness={self.overall_balancedness:.4f}{moved})"
        )


def describe_counts(placement: Placement) -> str:
    """Return the counts of a placement in words."""
    low, high = int(placement.slots_per_rank.min()), int(placement.slots_per_rank.max())
    slots = str(low) if low == high else f"{low} to {high}"
    return (
        f"{counted(placement.num_layers, 'layer')}, {counted(placement.num_logical_experts, 'expert')} + "
        f"{placement.num_redundant_experts} redundant on {counted(placement.ep_size, 'rank')} of {counted(slots, 'slot')}"
    )


def describe_balance(balancedness: Float64Array, overall: float) -> list[str]:
    """Return lines that say how balanced the layers are, and which is the worst."""
    worst = int(balancedness.argmin())
    return [
        f"balancedness {overall:.4f} (mean / max rank load), worst layer {worst} with {balancedness[worst]:.4f}"
    ]
