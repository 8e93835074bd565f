# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What was measured, as tables, as a page of Markdown and as rows of a record."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np

from harness.bench.planner.peers import FAST, PRECISE, VLLM
from harness.record import tables
from harness.record.tables import NONE, Sheet, number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.bench.planner.studies import Replan
    from harness.bench.planner.timing import Figures, Outcome
    from harness.record.schema import Provenance


def policies_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the policies that answered at least one of the problems, in the order of the peers."""
    names = [name for outcome in outcomes for name in (*outcome.figures, *outcome.refused)]
    answered = {name for outcome in outcomes for name in outcome.figures}
    return [name for name in dict.fromkeys(names) if name in answered]


def quality_sheets(outcomes: Sequence[Outcome]) -> list[Sheet]:
    """Return gap, time and violations of every policy on every problem."""
    names = policies_of(outcomes)
    gaps = _cells(outcomes, lambda one: f"{one.gap_percent:.2f}")
    broken = _cells(outcomes, lambda one: str(one.violations.total))
    return [
        Sheet("Quality", _GAP, ["gap, %", *names], gaps, _reasons(outcomes)),
        Sheet("Time", _TIME, [_MS, *names], _times(outcomes)),
        Sheet("Broken placements", _BROKEN, ["violations", *names], broken, _kinds(outcomes)),
    ]


def _cells(outcomes: Sequence[Outcome], cell: Callable[[Figures], str]) -> list[list[str]]:
    """Return a row a problem, a column a policy that answered any."""
    names = policies_of(outcomes)
    return [
        [one.problem.name, *(cell(one.figures[name]) if name in one.figures else NONE for name in names)]
        for one in outcomes
    ]


def _times(outcomes: Sequence[Outcome]) -> list[list[str]]:
    return [[one.problem.name, *(_time(one, name) for name in policies_of(outcomes))] for one in outcomes]


def _time(outcome: Outcome, name: str) -> str:
    if name not in outcome.figures:
        return NONE
    ratio = outcome.ratio(name, VLLM)
    return number(outcome.figures[name].median_ms) + (f" ({number(ratio)}×)" if ratio else "")


def _reasons(outcomes: Sequence[Outcome]) -> list[str]:
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        for name, reason in outcome.refused.items():
            found.setdefault(name, []).append(f"{outcome.problem.name}: {reason}")
    return [
        f"{name} gave no answer in {len(why)} of {len(outcomes)}; {why[0]}" for name, why in found.items()
    ]


def _kinds(outcomes: Sequence[Outcome]) -> list[str]:
    lines = []
    for name in policies_of(outcomes):
        found = [one.figures[name].violations for one in outcomes if name in one.figures]
        missing, twice, split = map(sum, zip(*(astuple(one) for one in found), strict=True))
        if missing or twice or split:
            lines.append(
                f"{name}: {missing} experts missing, {twice} twice on a rank, {split} groups on several nodes"
            )
    return lines


def growth_sheet(title: str, outcomes: Sequence[Outcome]) -> Sheet:
    """Return times of a series of growing problems, and the power of the size with which they grow."""
    names = policies_of(outcomes)
    rows = _times(outcomes)
    if len(outcomes) > 1:
        shapes = np.array([outcome.problem.load.shape for outcome in outcomes])
        size = np.log(shapes[:, 1 if (shapes[:, 0] == shapes[0, 0]).all() else 0])
        powers = []
        for name in names:
            answered = [name in outcome.figures for outcome in outcomes]
            ms = [outcome.figures[name].median_ms for outcome in outcomes if name in outcome.figures]
            slope = np.polyfit(size[answered], np.log(ms), 1)[0] if len(ms) > 1 else math.nan
            powers.append(number(float(slope)))
        rows.append(["power of the size", *powers])
    return Sheet(title, _GROWTH, [_MS, *names], rows)


def family_sheets(outcomes: Sequence[Outcome]) -> list[Sheet]:
    """Return gap and time of some policies on families of loads, and what of the goals is met."""
    names = policies_of(outcomes)
    gaps = Sheet(
        "Four families of loads",
        _FAMILIES,
        ["gap, %", *names],
        _cells(outcomes, lambda one: f"{one.gap_percent:.3f}"),
        _goals(outcomes),
    )
    return [gaps, Sheet("Time on four families", _TIME, [_MS, *names], _times(outcomes))]


# By slots a rank: the policy, its gap in % at most, and how many times faster than vLLM's policy at least.
_GOALS = {
    9: ((PRECISE, 0.05, 23.0),),
    5: ((PRECISE, 0.05, 23.0),),
    2: ((PRECISE, math.inf, 1.0), (FAST, 3.0, 0.0)),
}
# Only where there are more than twice as many slots as experts.
_MANY_COPIES = ((PRECISE, 1.3, 0.0),)


def _goals(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each goal that is missed, and one that counts those that are met."""
    lines, met = [], 0
    for one in outcomes:
        slots, experts = one.problem.num_physical, one.problem.load.shape[-1]
        goals = _GOALS[slots // one.problem.ep_size]
        if slots > 2 * experts:
            goals = (*goals, *_MANY_COPIES)
        else:
            goals = tuple(goal for goal in goals if goal[0] != FAST)
        for name, most, times in goals:
            if name not in one.figures:
                continue
            found, ratio = one.figures[name].gap_percent, one.ratio(name, VLLM)
            missed = [f"a gap of {found:.3f} % (goal {most} %)"] if found > most else []
            if ratio is not None and ratio < times:
                missed.append(f"{number(ratio)} times vLLM's speed (goal {times:g})")
            met += not missed
            lines += [f"missed: {one.problem.name}, {name}: {' and '.join(missed)}"] if missed else []
    return [f"{met} goals met, {len(lines)} missed", *lines]


def replan_sheet(replans: Sequence[Replan], sigma: float) -> Sheet:
    """Return balancedness against what moves."""
    columns = ["58×256 → 288/32", "balancedness", "slots changed, %", "fetched, %", "ms"]
    rows = [
        [
            one.name,
            f"{one.balancedness:.4f}",
            f"{one.changed_percent:.1f}",
            f"{one.fetched_percent:.1f}",
            number(one.median_ms),
        ]
        for one in replans
    ]
    return Sheet("A shifted load", _REPLAN.format(sigma=sigma), columns, rows)


def time_sheet(scores: Mapping[str, Mapping[str, tuple[float, float]]]) -> Sheet:
    """Return the balancedness of later windows."""
    tasks = list(next(iter(scores.values())))
    rows = [
        [
            name,
            *(f"{found[task][0]:.3f}" if task in found else NONE for task in tasks),
            number(float(np.median([ms for _, ms in found.values()]))),
        ]
        for name, found in scores.items()
    ]
    return Sheet("The next windows", _OVER_TIME, ["policy, planned from", *tasks, "ms"], rows)


def first_sheet(seconds: Mapping[str, Mapping[str, float]]) -> Sheet:
    """Return seconds of the first plan in a new process."""
    rows = [
        [name, *(f"{value:.3f}" for value in (found["import_s"], found["plan_s"], sum(found.values())))]
        for name, found in seconds.items()
    ]
    columns = ["58×256 → 288/32", "imports, s", "first plan, s", "both, s"]
    return Sheet("The first plan of a process", _FIRST, columns, rows)


def page(sheets: Sequence[Sheet], provenance: Provenance, absent: Sequence[str], picture: str | None) -> str:
    """Return a page of Markdown: how it was measured, the plot, the tables.

    Args:
        sheets: the tables.
        provenance: where it was measured.
        absent: what was left out, a line each.
        picture: address of the plot as seen from the page; None for none.
    """
    title = "Gap against time of every policy, a panel for each case"
    return tables.page(
        title="The planner beside others",
        intro=[_HOW],
        measured=tables.measured_on(provenance),
        picture=picture and {"title": title, "address": picture},
        sections=sheets,
        left_out=absent,
    )


_HOW = """\
Written by `nox -s planner_bench -- --record` ([its source](../src/harness/bench/planner)); do not edit. One thread; every policy
plans every case once unmeasured, then all policies take turns, so that ratios hold on a busy machine; times are
medians. An input is in the policy's own form before the clock starts. Answers are scored by rules of the benchmark:
an expert's load is split evenly over its replicas, and rank r of S slots owns slots rS … (r + 1)S − 1.
`L×E → P/R` is L layers of E experts on P slots of R ranks. Loads are log-normal (σ 0.85) with a fixed seed, where
nothing else is said; Zipf's power goes from 0.5 in the first layer to 1.2 in the last. `balanced` stops a layer within
its tolerance of a proven lower bound; the default is 0.04 %.
"""
_MS = "ms (times faster than vLLM)"
_GAP = (
    "How far the hottest rank is above the lower bound that `balanced` proves with `certify`, which is not timed, mean over layers, in %. The same "
    "expert twice on a rank makes a gap smaller than a placement allows."
)
_TIME = "Median of a call in ms of the processor."
_FAMILIES = (
    "Log-normal as above; heavy: σ 1, and 2 % of the experts four times as hot; Zipf as above; recorded: every layer of "
    "ESFT's four tasks, 64 experts. Goals: `balanced` within 0.05 % at nine and five slots a rank, in 1/23 of the time "
    "of vLLM's policy (what two times TensorRT-LLM's would be; it cannot be installed here); within 1.3 % with more than two "
    "slots an expert at two a rank, within 3 % at a tolerance of 1 %; and never slower than vLLM's policy."
)
_BROKEN = (
    "Counted over all layers: experts without a slot, slots whose expert stands on their rank already (the second copy is wasted), and "
    "groups on several nodes."
)
_GROWTH = "Median of a call in ms of the processor; the last row is p in time ∝ size^p."
_REPLAN = (
    'Every expert\'s load changes by a log-normal factor (σ {sigma:.3f}). "At most" limits the slots of a '
    "layer that may change. Balancedness is mean / max rank load, mean over layers."
)
_OVER_TIME = (
    "Recorded windows of 512 tokens of ESFT's four tasks, 26×64 → 80/16: planned from windows 0 … 7, scored on windows "
    "8 … 15 by the sum of mean rank loads over that of the hottest ranks."
)
_FIRST = (
    "Medians over new processes with no compiled code kept from before. vLLM's imports are vLLM and torch, which a "
    "server has imported before it plans."
)


def record_name(case: str) -> str:
    """Return what a record calls a case, in ASCII."""
    return f"planner, {case}".replace("×", "x").replace("→", "on")


def case_record(outcome: Outcome) -> dict[str, object]:
    """Return a problem and each policy's figures, as a row of a record."""
    problem = outcome.problem
    policies: dict[str, object] = {name: {"refused": why} for name, why in outcome.refused.items()}
    for name, one in outcome.figures.items():
        ratio = outcome.ratio(name, VLLM)
        policies[name] = {
            "median_ms": round(one.median_ms, 4),
            "runs": one.runs,
            "times_faster_than_vllm": None if ratio is None else round(ratio, 2),
            "gap_percent": None if math.isnan(one.gap_percent) else round(one.gap_percent, 4),
            "balancedness": None if math.isnan(one.balancedness) else round(one.balancedness, 5),
            **vars(one.violations),
        }
    return {
        "benchmark": record_name(problem.name),
        "layers": problem.total.shape[0],
        "experts": problem.total.shape[1],
        "physical_experts": problem.num_physical,
        "ranks": problem.ep_size,
        "groups": problem.num_groups,
        "nodes": problem.num_nodes,
        "policies": policies,
    }
