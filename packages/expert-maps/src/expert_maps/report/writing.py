# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Findings as one HTML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps import metrics
from expert_maps._version import __version__
from expert_maps._words import counted
from expert_maps.report import figures
from expert_maps.report.page import figures as side_by_side
from expert_maps.report.page import folded, listed, page, paragraph, section, table
from expert_maps.report.svg import text
from expert_maps.simulation import OFF

if TYPE_CHECKING:
    from expert_maps.report.finding import Findings
    from expert_maps.simulation import Run

_ANSWERS = {"yes": "yes", "no": "no", "not enough data": "open"}


def as_html(found: Findings, title: str = "the load") -> str:
    """Return the report: HTML that is well-formed XML, without scripts and without anything from elsewhere.

    Args:
        found: what `find` returned.
        title: what the load is called; any text.
    """
    placement = found.result.placement
    what = (
        f"{counted(found.load.num_steps, 'step')} of {counted(placement.num_layers, 'layer')} of "
        f"{counted(placement.num_logical_experts, 'expert')} on {counted(placement.ep_size, 'rank')}, "
        f"{found.redundant} redundant, planned by {found.result.policy}"
    )
    return page(
        f"EPLB: {title}",
        f"<h1>Is EPLB worth it? {text(title, 200)}</h1>",
        paragraph(what, "soft"),
        _answer(found),
        _numbers(found),
        _balance(found),
        _time(found),
        _memory(found),
        _why(found),
        _layers(found),
        section("How this was made", listed(_made(found))),
    )


def as_bytes(count: int) -> str:
    """Write bytes in the decimal unit that fits."""
    sign, size = ("−" if count < 0 else ""), abs(count)
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if round(10 * size / one) >= 10:  # noqa: PLR2004 - 1.0 of the unit
            return f"{sign}{size / one:,.1f} {unit}"
    return f"{sign}{size} bytes"


def _answer(found: Findings) -> str:
    advice = found.advice
    words = f"<strong>{text(advice.answer.capitalize())}</strong>"
    reasons = "".join(paragraph(reason) for reason in advice.reasons[:1])
    setting = ""
    if advice.setting is not None:
        when = f"every {counted(advice.setting.interval, 'step')}" if advice.setting.interval else "once"
        setting = paragraph(
            f"Setting: {advice.setting.num_redundant_experts} redundant experts, policy {advice.setting.policy}, "
            f"planned {when}."
        )
    return f'<div class="answer {_ANSWERS[advice.answer]}">{words}{reasons}{setting}</div>'


def _numbers(found: Findings) -> str:
    before, after = metrics.overall_of(found.before), found.result.overall_balancedness
    advice = found.advice
    entries = [
        (
            f"{before:.4f} → {after:.4f}",
            "balancedness (mean / hottest rank), without EPLB and with this plan",
        ),
        (f"{1 / before:.2f} → {1 / after:.2f}", "hottest rank / mean rank"),
    ]
    if advice.gain is not None and advice.gain_interval is not None:
        low, high = advice.gain_interval
        entries.append((f"{advice.gain:.1%}", f"of the time saved; 95 % interval {low:.1%} to {high:.1%}"))
    if advice.extra_bytes_per_rank is not None:
        entries.append((as_bytes(advice.extra_bytes_per_rank), "more weights on a rank than without copies"))
    if advice.bytes_left is not None:
        entries.append((as_bytes(advice.bytes_left), "of a rank's device left beside experts"))
    if advice.start_seconds is not None:
        entries.append((f"{advice.start_seconds:.2f} s", "first move and plan, once"))
    cells = "".join(f"<li><b>{text(value)}</b>{text(words)}</li>" for value, words in entries)
    return f'<ul class="numbers">{cells}</ul>'


def _balance(found: Findings) -> str:
    result = found.result
    worst = int(metrics.balancedness_of(found.before).argmin())
    return section(
        "Balance",
        paragraph(
            "All ranks wait for the hottest one. Point at a mark, a bar or a cell to read its numbers. This plan is made "
            "from all steps and shown under the same: what is to be expected of later steps stands under Time.",
        ),
        side_by_side(
            [
                *figures.rank_loads(found.before, result.rank_load, found.names),
                figures.by_layer(found.before, result.rank_load, found.names),
                figures.experts(result.placement, found.load, worst, found.names),
            ]
        ),
    )


def _time(found: Findings) -> str:
    if not found.runs:
        return section(
            "Time", paragraph("The load has one step: nothing can be said of steps that come later.")
        )
    lines: dict[str, list[tuple[int, float]]] = {}
    for run in found.runs:
        if run.setting.policy != OFF:
            name = f"planned every {run.setting.interval} steps" if run.setting.interval else "planned once"
            lines.setdefault(name, []).append((run.setting.num_redundant_experts, found.second_half(run)))
    heads = ["setting", "balancedness", "moves", "moved", "stall", "planner"]
    own = next((i for i, run in enumerate(found.runs) if run.setting == found.advice.setting), None)
    return section(
        "Time",
        paragraph(
            f"Replayed without look-ahead: the first plan is made from steps 0 to {found.begin - 1}, and the "
            "table and the second figure are of the steps from there on.",
        ),
        side_by_side(
            [
                figures.over_time(found.runs, found.begin, found.advice.setting),
                figures.against_redundancy(lines),
            ]
        ),
        table(heads, [_row(found, run) for run in found.runs], own),
    )


def _row(found: Findings, run: Run) -> list[str]:
    cells = [run.setting.name, f"{found.second_half(run):.4f}"]
    if run.setting.policy == OFF:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        str(run.rearrangements),
        as_bytes(run.moved_bytes),
        f"{run.stall.sum():.3f} s",
        f"{run.planner.sum():.3f} s",
    ]


def _memory(found: Findings) -> str:
    rows = [
        [
            row.num_redundant_experts,
            row.slots_per_rank,
            as_bytes(row.bytes_per_rank),
            as_bytes(row.extra_bytes_per_rank),
            *([] if row.bytes_left is None else [as_bytes(row.bytes_left) if row.fits else "does not fit"]),
        ]
        for row in found.advice.memory
    ]
    heads = ["redundant experts", "slots of a layer on a rank", "experts on a rank", "for redundant ones"]
    is_known = any(row.bytes_left is not None for row in found.advice.memory)
    said = paragraph(
        "What is left of a rank's device is told where its memory is said (--device-memory).", "soft"
    )
    return section(
        "Memory", table([*heads, "left of the device"] if is_known else heads, rows), "" if is_known else said
    )


def _why(found: Findings) -> str:
    advice = found.advice
    rules = [f"{rule.name}: {rule.text}" for rule in advice.rules]
    model = (
        [f"time model: a = {advice.layer_ms:.4g} ms a layer, b = {advice.token_ms:.4g} ms a token"]
        if advice.layer_ms is not None
        else []
    )
    return section(
        "Why, and what it rests on",
        listed(advice.reasons),
        *(["<h3>Known rules that apply</h3>", listed(rules)] if rules else []),
        "<h3>Assumptions</h3>",
        listed([*advice.assumptions, *model, *found.notes]),
    )


def _layers(found: Findings) -> str:
    result = found.result
    before, after = metrics.balancedness_of(found.before), result.balancedness
    rows = [
        [
            *found.names.cells(layer),
            f"{before[layer]:.4f}",
            f"{after[layer]:.4f}",
            int(result.rank_load[layer].argmax()),
            f"{result.rank_load[layer].max():,.0f}",
            int(found.load.total[layer].argmax()),
            f"{found.load.total[layer].max():,.0f}",
        ]
        for layer in range(result.placement.num_layers)
    ]
    heads = ["without EPLB", "with this plan", "hottest rank", "its tokens", "hottest expert", "its tokens"]
    return section(
        "Layers",
        folded(f"Balancedness of {counted(len(rows), 'layer')}", table([*found.names.columns, *heads], rows)),
    )


def _made(found: Findings) -> list[str]:
    placement = found.result.placement
    return [
        f"expert-maps {__version__}",
        f"digest of the placement: {placement.digest}",
        f"an expert of {as_bytes(found.costs.expert_bytes)}; a rank sends and receives {found.costs.bandwidth:g} GB/s",
        "planner seconds were measured on the machine that made this report",
    ]
