# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One setting, replayed over a trace: a placement that is used at a step was planned from steps before it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import metrics
from expert_maps.errors import ExpertMapsError, PlacementError
from expert_maps.layouts import generate_placement
from expert_maps.planning import plan
from expert_maps.simulation.settings import OFF, Costs, Setting
from expert_maps.simulation.transfers import transfer_rounds
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement

    Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """How one setting did. Its arrays are of one number a step.

    Attributes:
        setting: what was run.
        hottest: float64 [steps], tokens of the hottest rank, summed over layers.
        mean: float64 [steps], tokens of the mean rank, summed over layers.
        stall: float64 [steps], seconds that moving takes before the step.
        planner: float64 [steps], seconds that the planner took before the step, measured in this run.
        rearrangements: how often experts moved.
        skipped: how often a plan was due and the window was balanced enough.
        changed_slots: slots that got another expert, over all layers and rearrangements.
        fetched_slots: those of them whose expert came from another rank.
        moved_bytes: what crossed the network.
        rounds: of transfers, see `transfer_rounds`.
        reason: why there is no such run; the arrays are empty then.
    """

    setting: Setting
    hottest: Float64Array
    mean: Float64Array
    stall: Float64Array
    planner: Float64Array
    rearrangements: int = 0
    skipped: int = 0
    changed_slots: int = 0
    fetched_slots: int = 0
    moved_bytes: int = 0
    rounds: int = 0
    reason: str | None = None

    @property
    def balancedness(self) -> Float64Array:
        """float64 [steps]: mean / hottest, sums over layers; 1 without load."""
        return np.divide(self.mean, self.hottest, out=np.ones_like(self.mean), where=self.hottest > 0)

    @property
    def over_steps(self) -> float:
        """The ratio of the sums over steps and layers of mean and hottest rank; 1 without load."""
        hottest = float(self.hottest.sum())
        return float(self.mean.sum()) / hottest if hottest > 0 else 1.0


def replay(
    load: ExpertLoad,
    setting: Setting,
    *,
    window: int | None = None,
    first: int | None = None,
    costs: Costs | None = None,
) -> Run:
    """Replay a trace under one setting.

    It starts with vLLM's layout (``append``: all experts, then copies of the first), or without EPLB ``linear``. Before
    step ``first``, and then after every ``interval`` steps, a placement is planned from the last ``window`` steps, all
    of them before it.

    Args:
        load: [steps, L, E].
        setting: what to run.
        window: steps that a plan looks back at; None for the interval, and all that were before ``first`` where the
            setting plans once.
        first: steps before the first plan; None for the interval, or half of the trace where the setting plans once.
        costs: what a move costs; None for the defaults of `Costs`.

    Raises:
        ExpertMapsError: there is no such placement, or a count is none.
    """
    begin = _first_step(load, setting, first)
    back = window if window is None else as_count("window", window, 1)
    price = costs or Costs()
    steps = load.num_steps
    hottest, stall, planner = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    placement = _start(load, setting)
    counted: dict[str, Any] = dict.fromkeys(
        ("rearrangements", "skipped", "changed_slots", "fetched_slots", "moved_bytes", "rounds"), 0
    )
    bounds = [0, *_plan_steps(setting, begin, steps), steps]
    for now, until in pairwise(bounds):
        if now > 0:
            seen = load.counts[max(0, now - (back or setting.interval or now)) : now]
            started = time.perf_counter()
            following = _next(placement, seen, setting)
            planner[now] = time.perf_counter() - started
            if following is None:
                counted["skipped"] += 1
            else:
                changed, fetched, rounds = transfer_rounds(placement, following)
                _count(counted, changed, fetched, rounds, price)
                stall[now] = price.seconds(rounds)
                placement = following
        hottest[now:until] = metrics.step_peaks(placement, load.counts[now:until]).sum(axis=1)
    mean = load.counts.sum(axis=(1, 2)) / setting.ep_size
    return Run(setting, hottest, mean, stall, planner, **counted)


def attempt(load: ExpertLoad, setting: Setting, **how: Any) -> Run:  # noqa: ANN401 - as of `replay`
    """Replay, or say in ``reason`` why there is no such placement; arguments as of `replay`."""
    try:
        return replay(load, setting, **how)
    except ExpertMapsError as error:
        reason = error.summary if isinstance(error, PlacementError) else str(error)
        none = np.zeros(0)
        return Run(setting, none, none, none, none, reason=" ".join(reason.split()))


def _count(counted: dict[str, int], changed: int, fetched: int, rounds: int, price: Costs) -> None:
    counted["rearrangements"] += changed > 0
    counted["changed_slots"] += changed
    counted["fetched_slots"] += fetched
    counted["moved_bytes"] += fetched * price.expert_bytes
    counted["rounds"] += rounds


def _first_step(load: ExpertLoad, setting: Setting, first: int | None) -> int:
    if first is None:
        return setting.interval or max(1, load.num_steps // 2)
    begin = as_count("first", first, 1)
    if begin >= load.num_steps:
        msg = f"first is {begin}; expected less than the {load.num_steps} steps of the trace"
        raise ExpertMapsError(msg)
    return begin


def _plan_steps(setting: Setting, first: int, steps: int) -> list[int]:
    """The steps before which a plan is made."""
    if setting.policy == OFF or first >= steps:
        return []
    return list(range(first, steps, setting.interval)) if setting.interval else [first]


def _start(load: ExpertLoad, setting: Setting) -> Placement:
    return generate_placement(
        "linear" if setting.policy == OFF else "append",
        num_experts=load.num_experts,
        ep_size=setting.ep_size,
        num_redundant_experts=setting.num_redundant_experts,
        num_layers=load.num_layers,
    )


def _next(placement: Placement, seen: Float64Array, setting: Setting) -> Placement | None:
    """Plan from the steps that were seen; None where they are balanced enough."""
    if metrics.over_steps(placement, seen) >= setting.threshold:
        return None
    is_balanced = setting.policy == "balanced"
    return plan(
        seen,
        ep_size=setting.ep_size,
        num_redundant_experts=setting.num_redundant_experts,
        policy=setting.policy,
        current=placement if is_balanced else None,
        max_moves=setting.max_moves if is_balanced else None,
    ).placement
