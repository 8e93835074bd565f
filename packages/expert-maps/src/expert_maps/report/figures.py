# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of a report."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps.report.page import Figure
from expert_maps.report.svg import Axes, Line, draw_bars, draw_lines, heatmap, legend, scale
from expert_maps.simulation import OFF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps._layers import LayerNames
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement
    from expert_maps.simulation import Run, Setting

    Float64Array = NDArray[np.float64]

# Cells of a heatmap in either direction, bars and points of a line: more are taken together, and that is said.
MOST_CELLS = 96
MOST_BARS = 256
MOST_POINTS = 48
MOST_LINES = 5


def rank_loads(before: Float64Array, after: Float64Array, names: LayerNames) -> list[Figure]:
    """Draw rank loads before and after, each as parts of the layer's mean rank, on one scale.

    Args:
        before: float64 [L, R], tokens.
        after: the same.
        names: of the layers.
    """
    top = max(1.0, *(float(_of_mean(loads).max()) for loads in (before, after)))
    found = []
    for loads, title in ((before, "Rank loads without EPLB"), (after, "Rank loads with this plan")):
        part = _of_mean(loads)
        rows, columns = _cuts(part.shape[0], MOST_CELLS), _cuts(part.shape[1], MOST_CELLS)
        cells = np.array([[part[a:b, c:d].max() for c, d in pairwise(columns)] for a, b in pairwise(rows)])
        said = [
            [_cell(part, loads, (a, b), (c, d), names) for c, d in pairwise(columns)]
            for a, b in pairwise(rows)
        ]
        axes = Axes(
            (-0.5, part.shape[1] - 0.5),
            (part.shape[0] - 0.5, -0.5),
            "rank",
            "MoE layer, by row",
            height=min(max(140.0, 50 + 9.0 * part.shape[0]), 340.0),
        )
        # The cells stand for so many rows and columns: their own counts are the frame's here.
        inner = Axes((-0.5, cells.shape[1] - 0.5), (cells.shape[0] - 0.5, -0.5), "", "", height=axes.height)
        heatmap(inner, cells, top, said)
        axes.parts += inner.parts
        grouped = "" if cells.shape == part.shape else " A cell is the hottest of several ranks or layers."
        worst = int(part.max(axis=1).argmax())
        caption = f"Hottest: {part.max():.2f} × the mean, in {names.one(worst)}, rank {int(part[worst].argmax())}.{grouped}"
        label = f"{title}: a row for each layer, a column for each rank"
        found.append(
            Figure(title, axes.figure(label) + scale(top, "tokens / mean rank of the layer"), caption)
        )
    return found


def _of_mean(loads: Float64Array) -> Float64Array:
    mean = loads.mean(axis=1, keepdims=True)
    return np.divide(loads, mean, out=np.zeros_like(loads), where=mean > 0)


def _cuts(count: int, most: int) -> list[int]:
    """Where to cut a count into parts as equal as can be, at most so many."""
    parts = min(count, most)
    return [count * index // parts for index in range(parts + 1)]


def _cell(
    part: Float64Array,
    loads: Float64Array,
    rows: tuple[int, int],
    columns: tuple[int, int],
    names: LayerNames,
) -> str:
    block = part[rows[0] : rows[1], columns[0] : columns[1]]
    row, column = (int(index) for index in np.unravel_index(int(block.argmax()), block.shape))
    layer, rank = rows[0] + row, columns[0] + column
    return (
        f"{names.one(layer)}, rank {rank}: {part[layer, rank]:.3f} × mean, {loads[layer, rank]:,.0f} tokens"
    )


def by_layer(before: Float64Array, after: Float64Array, names: LayerNames) -> Figure:
    """Draw the balancedness of every layer before and after."""
    lines = [
        Line(
            name,
            [
                (layer, value, f"{names.one(layer)}: {value:.4f}, {name}")
                for layer, value in enumerate(values)
            ],
            dashed=dashed,
        )
        for name, dashed, values in (
            ("without EPLB", True, metrics.balancedness_of(before).tolist()),
            ("with this plan", False, metrics.balancedness_of(after).tolist()),
        )
    ]
    axes = Axes((-0.5, len(before) - 0.5), _range(lines), "MoE layer, by row", "mean / hottest rank")
    draw_lines(axes, lines)
    worst = int(metrics.balancedness_of(before).argmin())
    caption = f"1 is perfect. The least balanced without EPLB is {names.one(worst)}."
    return Figure(
        "Balancedness of every layer", axes.figure("Balancedness of every layer") + legend(lines), caption
    )


def experts(placement: Placement, load: ExpertLoad, layer: int, names: LayerNames) -> Figure:
    """Draw the experts of a layer, the hottest first, and what each of their copies carries."""
    tokens, copies = load.total[layer], placement.replica_count[layer]
    order = np.argsort(-tokens, kind="stable")[:MOST_BARS].tolist()
    mean = float(tokens.mean())
    axes = Axes(
        (-0.5, len(order) - 0.5), (0.0, max(float(tokens.max()), 1.0)), "experts, the hottest first", "tokens"
    )
    bars = [
        (
            float(tokens[expert]),
            "more" if copies[expert] > 1 else "one",
            (
                f"expert {expert}: {tokens[expert]:,.0f} tokens, {tokens[expert] / mean if mean else 0:.2f} × mean; "
                f"copies: {copies[expert]}, each {tokens[expert] / copies[expert]:,.0f}"
            ),
        )
        for expert in order
    ]
    draw_bars(axes, bars)
    path = "".join(
        f"{'M' if index == 0 else 'L'}{axes.across(index - 0.5):.2f} {axes.down(float(tokens[e] / copies[e])):.1f}"
        f"H{axes.across(index + 0.5):.2f}"
        for index, e in enumerate(order)
    )
    axes.parts.append(f'<path class="line s1" d="{path}"/>')
    left = "" if len(order) == len(tokens) else f" The hottest {len(order)} of {len(tokens)} are drawn."
    caption = f"Coloured bars have several copies; the line is what each copy carries.{left}"
    return Figure(f"Experts of {names.one(layer)}", axes.figure("Tokens of each expert"), caption)


def over_time(runs: Sequence[Run], begin: int, own: Setting | None = None) -> Figure:
    """Draw balancedness over time: without EPLB, with the setting that is advised, and of the best runs.

    Args:
        runs: of one trace.
        begin: the step before which their first plan is made.
        own: the setting that is advised.
    """
    off = [run for run in runs if run.setting.policy == OFF]
    rest = sorted(
        (run for run in runs if run.setting.policy != OFF),
        key=lambda run: (run.setting != own, -run.over_steps),
    )
    shown = [*off, *rest[: MOST_LINES - len(off)]]
    lines = [Line(run.setting.name, _points(run), dashed=run.setting.policy == OFF) for run in shown]
    axes = Axes((0, max(len(shown[0].mean) - 1, 1)), _range(lines), "step", "mean / hottest rank")
    if begin < len(shown[0].mean):
        axes.parts.append(f'<path class="axis" d="M{axes.across(begin):.1f} 8V{axes.height - 34:.1f}"/>')
    draw_lines(axes, lines)
    grouped = len(shown[0].mean) > MOST_POINTS
    caption = (
        f"From the upright line on, at step {begin}, plans made from the steps before are in use."
        + (" A mark is the mean of several steps." if grouped else "")
        + (f" Of {len(runs)} settings the best are drawn." if len(shown) < len(runs) else "")
    )
    return Figure("Balancedness over time", axes.figure("Balancedness over time") + legend(lines), caption)


def _points(run: Run) -> list[tuple[float, float, str]]:
    found = []
    for a, b in pairwise(_cuts(len(run.mean), MOST_POINTS)):
        hottest = float(run.hottest[a:b].sum())
        value = float(run.mean[a:b].sum()) / hottest if hottest > 0 else 1.0
        when = f"step {a}" if b == a + 1 else f"steps {a} to {b - 1}"
        found.append(((a + b - 1) / 2, value, f"{when}: {value:.4f}, {run.setting.name}"))
    return found


def against_redundancy(values: dict[str, list[tuple[int, float]]]) -> Figure:
    """Draw balancedness against redundancy.

    Args:
        values: by the name of a line: redundant experts, and balancedness over the scored steps.
    """
    lines = [
        Line(
            name,
            [(copies, value, f"{copies} redundant: {value:.4f}, {name}") for copies, value in sorted(points)],
        )
        for name, points in values.items()
    ]
    amounts = [copies for points in values.values() for copies, _ in points]
    axes = Axes(
        (min(amounts), max(amounts)), _range(lines), "redundant experts of a layer", "mean / hottest rank"
    )
    draw_lines(axes, lines)
    caption = "Over the second half of the trace, planned from steps before. More copies take more memory."
    return Figure(
        "Balancedness against redundancy",
        axes.figure("Balancedness against redundancy") + legend(lines),
        caption,
    )


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    """From the least value, a little below, to 1."""
    low = min((y for line in lines for _, y, _ in line.points), default=0.0)
    return max(0.0, low - 0.05 * (1 - low) - 0.005), 1.0
