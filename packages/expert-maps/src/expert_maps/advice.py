# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`advise`: whether EPLB is worth it for a recorded load, with how many redundant experts, and how often to move.

A setting is chosen on the first half of the trace and scored on the second. The time model, for a step:
time = a · L + b · (tokens of the hottest rank, summed over the L layers).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from expert_maps.advice_memory import Memory, memory_assumed, memory_of, usual_amounts
from expert_maps.advice_model import TimeModel, bootstrap, gain_of
from expert_maps.advice_rules import Rule, Served, apply_rules
from expert_maps.advice_words import Answer, answer_of, assumptions_of, why
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

LEAST_STEPS = 24
"""With fewer steps nothing is said: a half has too few blocks to tell a gain from chance."""

# Settings whose gains differ by less are taken for equal, and the one with fewer copies and moves is chosen.
_SAME_GAIN = 0.005


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
        bytes_left: what is left of the device beside them and `Served.other_memory`, for the cache; None where its
            memory was not said.
        start_seconds: what the first move and plan cost, once; not part of ``gain``.
        payback_steps: steps until that is saved; None where nothing is saved.
        memory: what each redundancy that was considered takes, also those that do not fit.
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
    bytes_left: int | None = None
    start_seconds: float | None = None
    payback_steps: float | None = None
    memory: list[Memory] = field(default_factory=list, repr=False)
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
    memory, copies = _copies(trace, ep_size, redundant, price, known, rules)
    half = trace.num_steps // 2
    times = [0, max(1, half // 8), max(1, half // 4)] if intervals is None else list(intervals)
    settings = sweep(
        ep_sizes=[ep_size], redundant=copies, policies=policies, intervals=times, max_moves=max_moves
    )
    assumptions = [*assumptions_of(model, price), *memory_assumed(known)]
    if trace.num_steps < LEAST_STEPS or not trace.total.any():
        what = f"the trace has {trace.num_steps} steps; expected at least {LEAST_STEPS}"
        reason = what if trace.num_steps < LEAST_STEPS else "the trace has no tokens"
        return Advice("not enough data", "not enough data", [reason], rules, assumptions, memory=memory)
    past = ExpertLoad(trace.counts[:half])
    runs = simulate(past, settings, first=half // 2, costs=price, workers=workers, progress=progress)
    chosen = _choose(runs, half // 2, model)
    found = _score(trace, half, chosen, runs, model, price, rules, assumptions, least)
    return _with_memory(found, memory)


def _copies(
    trace: ExpertLoad,
    ep_size: int,
    redundant: Iterable[int] | None,
    price: Costs,
    known: Served,
    rules: list[Rule],
) -> tuple[list[Memory], list[int]]:
    """Return what each redundancy takes, and those that the device allows; a rule is added for those that do not fit."""
    copies = usual_amounts(trace.num_experts, ep_size) if redundant is None else list(redundant)
    memory = memory_of(
        num_layers=trace.num_layers,
        num_experts=trace.num_experts,
        ep_size=ep_size,
        redundant=copies,
        expert_bytes=price.expert_bytes,
        served=known,
    )
    if known.device == "a2":
        copies = [amount for amount in copies if amount == 0]
        if not copies:
            msg = f"no redundant experts are allowed on A2, and {ep_size} ranks need some; expected 0 among them"
            raise LayoutError(msg)
    large = [row.num_redundant_experts for row in memory if not row.fits]
    fitting = [amount for amount in copies if amount not in large]
    if copies and not fitting:
        row = min(memory, key=lambda row: row.bytes_per_rank)
        msg = (
            f"device_memory is {known.device_memory}; expected at least {row.bytes_per_rank + known.other_memory} bytes, for "
            f"the experts of a rank with {row.num_redundant_experts} redundant ones and what else it holds"
        )
        raise LayoutError(msg)
    if large:
        text = f"{', '.join(map(str, large))} redundant experts do not fit in the device's memory, and are not considered"
        rules.append(Rule("memory of the device", text, means_no=False))
    return memory, fitting


def _with_memory(found: Advice, memory: list[Memory]) -> Advice:
    if found.setting is None:
        return replace(found, memory=memory)
    copies = found.setting.num_redundant_experts
    own = next(row for row in memory if row.num_redundant_experts == copies)
    return replace(
        found,
        memory=memory,
        bytes_per_rank=own.bytes_per_rank,
        extra_bytes_per_rank=own.extra_bytes_per_rank,
        bytes_left=own.bytes_left,
    )


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
    by_trace = answer_of(interval, least, blocks)
    forced = [rule for rule in rules if rule.means_no]
    a, b = model.coefficients(off.hottest[half:], trace.num_layers)
    saved = float(without.mean() - with_it.mean()) / 1000
    start = float(on.stall[half] + on.planner[half])
    balance = [float(run.mean[half:].sum() / run.hottest[half:].sum()) for run in (off, on)]
    return Advice(
        "no" if forced and by_trace == "yes" else by_trace,
        by_trace,
        [
            *why(by_trace, gain, interval, least, blocks, balance),
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
        start_seconds=start,
        payback_steps=start / saved if saved > 0 else None,
        chosen_from=runs,
    )
