# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How any placement does under any load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import metrics
from expert_maps._frozen import Frozen, lazy
from expert_maps._words import counted
from expert_maps.load import as_load
from expert_maps.placement import Placement, as_evaluated
from expert_maps.results import Balance, describe_balance, describe_counts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Evaluated, PlacementLike

    Float64Array = NDArray[np.float64]
    Int32Array = NDArray[np.int32]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Balance, Frozen):
    """What `evaluate` returns. An expert's load is split evenly over its copies. Read-only.

    Attributes:
        placement: what was evaluated; one whose slots differ by layer, as it was given.
        load: [steps, L, E].
    """

    placement: Placement
    load: ExpertLoad

    @property
    def ep_size(self) -> int:
        """R."""
        return self.placement.ep_size

    @lazy
    def rank_load(self) -> Float64Array:
        """float64 [L, R]: tokens of each rank, summed over steps."""
        return metrics.rank_load(self.placement, self.load)

    @lazy
    def step_peaks(self) -> Float64Array:
        """float64 [steps, L]: tokens of the hottest rank in each step."""
        return metrics.step_peaks(self.placement, self.load)

    @lazy
    def step_balancedness(self) -> Float64Array:
        """float64 [steps]: in each step the ratio of the sums over layers of mean and hottest rank; 1 without load."""
        mean = self.load.counts.sum(axis=(1, 2)) / self.ep_size
        peak = self.step_peaks.sum(axis=1)
        return np.divide(mean, peak, out=np.ones_like(peak), where=peak > 0)

    @property
    def over_steps(self) -> float:
        """The ratio of the sums over steps and layers of mean and hottest rank; see `expert_maps.over_steps`."""
        return metrics.over_steps_of(self.step_peaks, self.load, self.ep_size)

    @lazy
    def worst_layers(self) -> Int32Array:
        """int32 [L]: layers, the least balanced first."""
        return np.argsort(self.balancedness, kind="stable").astype(np.int32)

    @lazy
    def hottest_ranks(self) -> Int32Array:
        """int32 [L, R]: the ranks of each layer, the hottest first."""
        return np.argsort(-self.rank_load, axis=1, kind="stable").astype(np.int32)

    @lazy
    def hottest_experts(self) -> Int32Array:
        """int32 [L, E]: the logical experts of each layer, those with most tokens first, however many copies they have."""
        return np.argsort(-self.load.total, axis=1, kind="stable").astype(np.int32)

    def summary(self, layers: int = 3) -> str:
        """Return what there is to know in a few lines.

        Args:
            layers: of how many of the worst layers the hottest rank and expert are named.
        """
        counts = (
            f"{counted(self.load.num_layers, 'layer')}, {counted(self.load.num_experts, 'expert')} on "
            f"{counted(self.ep_size, 'rank')}"
        )
        is_plain = as_evaluated(self.placement)[1][0] is self.placement
        counts = describe_counts(self.placement) if is_plain else f"{counts}, slots differ by layer"
        lines = [counts, *describe_balance(self.balancedness, self.overall_balancedness)]
        if self.load.num_steps > 1:
            worst = int(self.step_balancedness.argmin())
            lines.append(
                f"balancedness over {counted(self.load.num_steps, 'step')} {self.over_steps:.4f}, worst step {worst} with "
                f"{self.step_balancedness[worst]:.4f}"
            )
        lines += [
            f"layer {layer}: hottest rank {self.hottest_ranks[layer, 0]} carries "
            f"{1 / self.balancedness[layer]:.3f} times the mean; hottest expert {self.hottest_experts[layer, 0]}"
            for layer in self.worst_layers[:layers].tolist()
        ]
        return "\n".join(lines)

    def plot(self, before: PlacementLike | None = None) -> Any:  # noqa: ANN401 - matplotlib may be absent
        """Draw balancedness and rank loads beside those of another placement; see `PlanResult.plot`."""
        from expert_maps import plots

        return plots.plot_plan(self, before)

    def __repr__(self) -> str:
        """Name the counts and how good it is; the arrays would flood a log."""
        return (
            f"Evaluation(num_steps={self.load.num_steps}, num_layers={self.load.num_layers}, "
            f"num_logical_experts={self.load.num_experts}, ep_size={self.ep_size}, "
            f"overall_balancedness={self.overall_balancedness:.4f}, over_steps={self.over_steps:.4f})"
        )


def evaluate(placement: Evaluated, load: ArrayLike | ExpertLoad) -> Evaluation:
    """Say how a placement does under a load, planned for it or not.

    Args:
        placement: L layers, E experts; a result that has one; or one whose slots differ by layer.
        load: tokens of each logical expert, [L, E] or [steps, L, E].

    Raises:
        LoadError: the load is invalid, or not of the placement's layers and experts.
        ExpertMapsError: what is given is no placement.
    """
    trace = as_load(load)
    metrics.parts_of(placement, trace)
    return Evaluation(as_evaluated(placement)[0], trace)
