# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a report is about: a plan, the advice, and a sweep around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_maps import metrics
from expert_maps._layers import UNNUMBERED, LayerNames
from expert_maps.advice import Advice, advise
from expert_maps.advice_memory import usual_amounts
from expert_maps.layouts import generate_placement
from expert_maps.load import as_load
from expert_maps.planning import plan
from expert_maps.simulation import OFF, Costs, Run, simulate, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from expert_maps.advice_model import TimeModel
    from expert_maps.advice_rules import Served
    from expert_maps.load import ExpertLoad
    from expert_maps.results import PlanResult

    Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Findings:
    """What a report tells.

    Attributes:
        load: [steps, L, E].
        result: the plan for all of it.
        before: float64 [L, R], rank loads of the linear layout without redundant experts.
        advice: for the plan's redundancy.
        runs: a sweep over redundancy and interval, planned from the first half on; the server without EPLB first.
            Empty for a load of one step.
        begin: the step before which their first plan is made.
        costs: what moves cost.
        names: of the layers.
        notes: what else was taken or said, a line each.
    """

    load: ExpertLoad
    result: PlanResult
    before: Float64Array
    advice: Advice
    runs: list[Run]
    begin: int
    costs: Costs
    names: LayerNames = UNNUMBERED
    notes: Sequence[str] = field(default=())

    @property
    def redundant(self) -> int:
        """P − E of the plan."""
        return self.result.placement.num_redundant_experts

    def second_half(self, run: Run) -> float:
        """Return the balancedness of a run over the steps that it was not planned from."""
        hottest = float(run.hottest[self.begin :].sum())
        return float(run.mean[self.begin :].sum()) / hottest if hottest > 0 else 1.0


def find(  # noqa: PLR0913 - options by keyword
    load: ArrayLike | ExpertLoad,
    *,
    ep_size: int,
    num_redundant_experts: int | None = None,
    policy: str = "balanced",
    time_model: TimeModel | None = None,
    costs: Costs | None = None,
    served: Served | None = None,
    least_gain: float = 0.01,
    workers: int = 1,
    names: LayerNames = UNNUMBERED,
    notes: Sequence[str] = (),
    progress: Callable[[int, int], object] | None = None,
) -> Findings:
    """Plan, advise and simulate.

    Args:
        load: [steps, L, E], in the order in which it was served.
        ep_size: R.
        num_redundant_experts: P − E; None for what `advise` chooses, else the least that divides.
        policy: that plans.
        time_model: as for `advise`.
        costs: as for `advise`.
        served: as for `advise`.
        least_gain: as for `advise`.
        workers: as for `simulate`.
        names: of the layers.
        notes: what else the report is to say, a line each.
        progress: called with (runs done, runs), anew for the advice and for the sweep.

    Raises:
        ExpertMapsError: the load or a count is invalid.
    """
    trace, price = as_load(load), costs or Costs()
    given = None if num_redundant_experts is None else [num_redundant_experts]
    advice = advise(
        trace,
        ep_size=ep_size,
        redundant=given,
        policies=(policy,),
        time_model=time_model,
        costs=price,
        served=served,
        least_gain=least_gain,
        workers=workers,
        progress=progress,
    )
    usual = usual_amounts(trace.num_experts, ep_size)
    chosen = usual[0] if advice.setting is None else advice.setting.num_redundant_experts
    copies = chosen if num_redundant_experts is None else num_redundant_experts
    result = plan(trace, ep_size=ep_size, num_redundant_experts=copies, policy=policy)
    linear = generate_placement(
        "linear", num_experts=trace.num_experts, ep_size=ep_size, num_layers=trace.num_layers
    )
    half = trace.num_steps // 2
    amounts = sorted({*usual, copies})
    runs = _sweep(trace, ep_size, amounts, policy, price, workers, progress) if half else []
    before = metrics.rank_load(linear, trace)
    return Findings(trace, result, before, advice, runs, half, price, names, tuple(notes))


def _sweep(
    trace: ExpertLoad,
    ep_size: int,
    amounts: list[int],
    policy: str,
    costs: Costs,
    workers: int,
    progress: Callable[[int, int], object] | None,
) -> list[Run]:
    """Simulate amounts of redundancy from the second half on; no runs where only the server without EPLB could be run."""
    half = trace.num_steps // 2
    settings = sweep(
        ep_sizes=[ep_size],
        redundant=amounts,
        policies=(policy,),
        intervals=sorted({0, max(1, half // 8), max(1, half // 4)}),
    )
    runs = simulate(trace, settings, first=half, costs=costs, workers=workers, progress=progress)
    done = [run for run in runs if run.reason is None]
    return done if any(run.setting.policy != OFF for run in done) else []
