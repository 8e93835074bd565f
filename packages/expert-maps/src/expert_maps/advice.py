# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`advise`: whether EPLB is worth it for a recorded load, with how many redundant experts, and how often to move.

A setting is chosen on the first half of the trace and scored on the second. The time model, for a step:
time = a · L + b · (tokens of the hottest rank, summed over the L layers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from expert_maps.advice_model import TimeModel, bootstrap, gain_of
from expert_maps.advice_rules import Rule, Served, apply_rules
from expert_maps.counts import least_redundancy
from expert_maps.errors import LayoutError
from expert_maps.load import ExpertLoad, as_load
from expert_maps.simulation import OFF, Costs, Run, Setting, replay, simulate, sweep
from expert_maps.simulation.settings import as_fraction
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Float64Array = NDArray[np.float64]

Answer = Literal["yes", "no", "not enough data"]

LEAST_STEPS = 24
"""With fewer steps nothing is said: a half has too few blocks to tell a gain from chance."""

_LEAST_BLOCKS = 4
# Settings whose gains differ by less are taken for equal, and the one with fewer copies and moves is chosen.
_SAME_GAIN = 0.005
_AMOUNTS = 3


@dataclass(frozen=True, eq=False)
class Advice:
    """What `advise` returns.

    Attributes:
        answer: ``yes``, ``no`` or ``not enough data``.
        answer_by_trace: the same before known rules were applied.
        reasons: why, in words.
        rules: known rules that apply.
        assumptions: what was taken as given.
        setting: the redundancy, interval and policy that were scored; None without enough data to choose.
        gain: part of the time that is saved, after moves and planner; None where nothing was scored.
        gain_interval: 95 % interval of it, block bootstrap.
        layer_ms, token_ms: a and b of the time model.
        balancedness_off, balancedness_on: over the scored steps.
        bytes_per_rank: weights of the experts of a rank, over layers, with the setting.
        extra_bytes_per_rank: how much more that is than without redundant experts.
        start_seconds: what the first move and plan cost, once; not part of ``gain``.
        payback_steps: steps until that is saved; None where nothing is saved.
        chosen_from: the runs on the first half of the trace, the server without EPLB first.
    """

    answer: Answer
    answer_by_trace: Answer
    reasons: list[str]
    rules: list[Rule]
    assumptions: list[str]
    setting: Setting | None = None
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None
    layer_ms: float | None = None
    token_ms: float | None = None
    balancedness_off: float | None = None
    balancedness_on: float | None = None
    bytes_per_rank: int | None = None
    extra_bytes_per_rank: int | None = None
    start_seconds: float | None = None
    payback_steps: float | None = None
    chosen_from: list[Run] = field(default_factory=list, repr=False)


def advise(  # noqa: PLR0913 - options by keyword
    load: ArrayLike | ExpertLoad,
    *,
    ep_size: int,
    redundant: Iterable[int] | None = None,
    intervals: Iterable[int] | None = None,
    policies: Iterable[str] = ("balanced",),
    max_moves: Iterable[int | None] = (None,),
    time_model: TimeModel | None = None,
    costs: Costs | None = None,
    served: Served | None = None,
    least_gain: float = 0.01,
    workers: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> Advice:
    """Say whether EPLB is worth it.

    The answer is yes where the whole 95 % interval of the gain is above ``least_gain``, no where the whole interval is
    below it, and else that there is not enough data. A known rule can turn a yes into a no; it is named then.

    Args:
        load: [steps, L, E], in the order in which it was served.
        ep_size: R.
        redundant: redundant experts to choose from; None for the least that divides, and one and two slots more a rank.
        intervals: steps from one plan to the next to choose from, 0 for once; None for 0, an eighth and a quarter of
            half the trace.
        policies: to choose from.
        max_moves: slots of a layer that a plan may change, to choose from.
        time_model: what a step takes; None for an assumption, which is named.
        costs: what moves cost; None for the defaults of `Costs`.
        served: what is known of the server, for known rules.
        least_gain: part of the time, from 0 to 1, that must be saved for it to be worth it.
        workers: as for `simulate`.
        progress: called with (runs done, runs).

    Raises:
        ExpertMapsError: the load or an option is invalid, or no setting has a placement.
    """
    trace, model, price = as_load(load), time_model or TimeModel(), costs or Costs()
    least = as_fraction("least_gain", least_gain)
    as_count("ep_size", ep_size, 1, error=LayoutError)
    known = served or Served()
    rules = apply_rules(known, trace.num_experts, ep_size)
    copies = _amounts(trace.num_experts, ep_size) if redundant is None else list(redundant)
    if known.device == "a2":
        copies = [amount for amount in copies if amount == 0]
        if not copies:
            msg = f"no redundant experts are allowed on A2, and {ep_size} ranks need some; expected 0 among them"
            raise LayoutError(msg)
    half = trace.num_steps // 2
    times = [0, max(1, half // 8), max(1, half // 4)] if intervals is None else list(intervals)
    settings = sweep(
        ep_sizes=[ep_size], redundant=copies, policies=policies, intervals=times, max_moves=max_moves
    )
    assumptions = _assumptions(model, price)
    if trace.num_steps < LEAST_STEPS or not trace.total.any():
        what = f"the trace has {trace.num_steps} steps; expected at least {LEAST_STEPS}"
        reason = what if trace.num_steps < LEAST_STEPS else "the trace has no tokens"
        return Advice("not enough data", "not enough data", [reason], rules, assumptions)
    past = ExpertLoad(trace.counts[:half])
    runs = simulate(past, settings, first=half // 2, costs=price, workers=workers, progress=progress)
    chosen = _choose(runs, half // 2, model)
    return _score(trace, half, chosen, runs, model, price, rules, assumptions, least)


def _amounts(num_experts: int, ep_size: int) -> list[int]:
    least = least_redundancy(num_experts, ep_size)
    most = num_experts * (ep_size - 1)
    return [least + more * ep_size for more in range(_AMOUNTS) if least + more * ep_size <= most] or [least]


def _assumptions(model: TimeModel, price: Costs) -> list[str]:
    origin = "measured by you" if model.is_measured else "assumed, not measured: give your server's numbers"
    return [
        "time of a layer = a + b x tokens of the hottest rank; an expert's tokens are split evenly over its copies",
        f"a step takes {model.step_ms:g} ms without EPLB, {model.moe_ms:g} ms of it in expert layers ({origin})",
        f"an expert has {price.expert_bytes} bytes; a rank sends and receives {price.bandwidth:g} GB/s",
        "serving waits for moves and for the planner, whose time was measured on this machine",
        "the load goes on as in the trace, whose steps are in the order in which they were served",
    ]


def _times(run: Run, off: Run, begin: int, model: TimeModel) -> tuple[Float64Array, Float64Array]:
    """Milliseconds of each step from ``begin``, without EPLB and with it; the first move and plan are left out."""
    _, slope = model.coefficients(off.hottest[begin:], 1)
    fixed = model.step_ms - model.moe_ms
    costs = 1000 * (run.stall + run.planner)
    costs[begin] = 0.0
    return fixed + slope * off.hottest[begin:], fixed + slope * run.hottest[begin:] + costs[begin:]


def _choose(runs: list[Run], begin: int, model: TimeModel) -> Run:
    off = runs[0]
    planned = [run for run in runs[1:] if run.reason is None]
    if off.reason is not None or not planned:
        msg = (
            f"there is nothing to choose from: {off.reason or (runs[1].reason if runs[1:] else 'no policy')}"
        )
        raise LayoutError(msg)
    if not off.hottest[begin:].any():
        return planned[0]
    gains = [gain_of(*_times(run, off, begin, model)) for run in planned]
    good = [run for run, gain in zip(planned, gains, strict=True) if gain >= max(gains) - _SAME_GAIN]
    return min(
        good,
        key=lambda run: (run.setting.num_redundant_experts, run.rearrangements, run.moved_bytes),
    )


def _score(  # noqa: PLR0913, PLR0917 - the parts of one answer
    trace: ExpertLoad,
    half: int,
    chosen: Run,
    runs: list[Run],
    model: TimeModel,
    price: Costs,
    rules: list[Rule],
    assumptions: list[str],
    least: float,
) -> Advice:
    setting = chosen.setting
    off = replay(trace, Setting(OFF, setting.ep_size), costs=price)
    if not off.hottest[half:].any():
        reason = "the second half of the trace has no tokens"
        return Advice("not enough data", "not enough data", [reason], rules, assumptions, chosen_from=runs)
    on = replay(trace, setting, first=half, costs=price)
    without, with_it = _times(on, off, half, model)
    gain = gain_of(without, with_it)
    blocks, interval = bootstrap(without, with_it, setting.interval)
    by_trace = _answer(interval, least, blocks)
    forced = [rule for rule in rules if rule.means_no]
    a, b = model.coefficients(off.hottest[half:], trace.num_layers)
    slots = math.ceil((trace.num_experts + setting.num_redundant_experts) / setting.ep_size)
    extra = slots - math.ceil(trace.num_experts / setting.ep_size)
    saved = float(without.mean() - with_it.mean()) / 1000
    start = float(on.stall[half] + on.planner[half])
    balance = [float(run.mean[half:].sum() / run.hottest[half:].sum()) for run in (off, on)]
    return Advice(
        "no" if forced and by_trace == "yes" else by_trace,
        by_trace,
        [
            *_why(by_trace, gain, interval, least, blocks, balance),
            *[f"rule: {rule.name}" for rule in forced if by_trace == "yes"],
        ],
        rules,
        assumptions,
        setting,
        gain,
        interval,
        a,
        b,
        balance[0],
        balance[1],
        slots * trace.num_layers * price.expert_bytes,
        extra * trace.num_layers * price.expert_bytes,
        start,
        start / saved if saved > 0 else None,
        runs,
    )


def _answer(interval: tuple[float, float], least: float, blocks: int) -> Answer:
    if blocks < _LEAST_BLOCKS:
        return "not enough data"
    if interval[0] > least:
        return "yes"
    return "no" if interval[1] < least else "not enough data"


def _why(
    answer: Answer,
    gain: float,
    interval: tuple[float, float],
    least: float,
    blocks: int,
    balance: list[float],
) -> list[str]:
    told = f"{gain:.1%} of the time is saved, 95 % interval {interval[0]:.1%} to {interval[1]:.1%}, moves and planner paid"
    lines = [
        told,
        f"balancedness {balance[0]:.4f} without EPLB, {balance[1]:.4f} with it, on steps not planned from",
    ]
    if blocks < _LEAST_BLOCKS:
        lines.append(
            f"the second half holds {blocks} blocks of such an interval; expected at least {_LEAST_BLOCKS}"
        )
    elif answer == "not enough data":
        lines.append(f"{least:.1%}, the least that is worth it, lies inside the interval: record more steps")
    elif answer == "no":
        lines.append(f"that is less than {least:.1%}, the least that is worth it")
    return lines
