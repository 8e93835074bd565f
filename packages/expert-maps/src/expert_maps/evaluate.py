# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Any placement under any load, and several policies side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps._validation import as_count
from expert_maps.errors import LayoutError
from expert_maps.layouts import check_divides
from expert_maps.load import ExpertLoad
from expert_maps.planning import plan
from expert_maps.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from expert_maps.placement import Placement

    Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """How a placement carries a load; an expert's tokens are split evenly over its copies.

    Attributes:
        placement: L layers, E experts, R ranks.
        load: what it carries.
    """

    placement: Placement
    load: ExpertLoad

    @cached_property
    def rank_load(self) -> Float64Array:
        """float64 [L, R]: tokens of each rank, summed over steps."""
        return metrics.rank_load(self.placement, self.load)

    @cached_property
    def step_peaks(self) -> Float64Array:
        """float64 [steps, L]: tokens of the hottest rank in each step."""
        return metrics.step_peaks(self.placement, self.load)

    @property
    def balancedness(self) -> Float64Array:
        """float64 [L]: mean / max rank load; 1 for a layer without load."""
        return metrics.balancedness_of(self.rank_load)

    @property
    def overall_balancedness(self) -> float:
        """The ratio of the sums over layers of mean and max rank load, as vLLM logs it."""
        peak = float(self.rank_load.max(axis=1).sum())
        return float(self.rank_load.mean(axis=1).sum()) / peak if peak > 0 else 1.0

    @property
    def over_steps(self) -> float:
        """The ratio of the sums over steps and layers of mean and hottest rank."""
        peak = float(self.step_peaks.sum())
        return float(self.load.total.sum()) / self.placement.ep_size / peak if peak > 0 else 1.0


def evaluate(placement: Placement, load: ArrayLike | ExpertLoad) -> Evaluation:
    """Say how a placement carries a load.

    Args:
        placement: L layers, E experts.
        load: [L, E] or [steps, L, E].

    Raises:
        LoadError: the load is invalid, or not of the placement's layers and experts.
    """
    trace = load if isinstance(load, ExpertLoad) else ExpertLoad(load)
    metrics.check_shape(placement, trace)
    return Evaluation(placement, trace)


@dataclass(frozen=True)
class ComparisonRow:
    """One plan of `compare`.

    Attributes:
        policy: its policy.
        num_redundant_experts: redundant experts of a layer.
        num_physical_experts: slots of a layer.
        overall_balancedness: as `Evaluation.overall_balancedness`.
        worst_layer: the layer with the lowest balancedness.
        worst_balancedness: that balancedness.
        over_steps: as `Evaluation.over_steps`.
        seconds: what the plan took.
    """

    policy: str
    num_redundant_experts: int
    num_physical_experts: int
    overall_balancedness: float
    worst_layer: int
    worst_balancedness: float
    over_steps: float
    seconds: float


def compare(
    load: ArrayLike | ExpertLoad,
    *,
    ep_size: int,
    policies: Sequence[str] = (DEFAULT_POLICY,),
    redundant: Sequence[int] = (0,),
    num_groups: int = 1,
    num_nodes: int = 1,
) -> list[ComparisonRow]:
    """Plan a load by several policies with several amounts of redundancy.

    Args:
        load: [L, E] or [steps, L, E].
        ep_size: R.
        policies: names of `POLICY_NAMES`.
        redundant: redundant experts of a layer, over all ranks.
        num_groups: as for `plan`.
        num_nodes: as for `plan`.

    Returns:
        A row for each policy and redundancy, in the order given.

    Raises:
        LoadError: the load is invalid.
        LayoutError: as `plan`.
    """
    trace = load if isinstance(load, ExpertLoad) else ExpertLoad(load)
    ranks = as_count("ep_size", ep_size, 1, error=LayoutError)
    rows = []
    for policy in policies:
        for copies in redundant:
            check_divides(trace.num_experts, copies, ranks)
            started = time.perf_counter()
            result = plan(
                trace,
                num_physical_experts=trace.num_experts + copies,
                ep_size=ranks,
                policy=policy,
                num_groups=num_groups,
                num_nodes=num_nodes,
            )
            seconds = time.perf_counter() - started
            found = evaluate(result.placement, trace)
            worst = int(np.argmin(found.balancedness))
            rows.append(
                ComparisonRow(
                    policy,
                    copies,
                    result.placement.num_physical_experts,
                    found.overall_balancedness,
                    worst,
                    float(found.balancedness[worst]),
                    found.over_steps,
                    seconds,
                )
            )
    return rows
