# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Gap against time, a panel for each case: matplotlib, which nothing else here needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.bench.planner.pages import policies_of
from harness.bench.planner.peers import FAST, PRECISE, TIGHT
from harness.record.drawing import drawing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.bench.planner.timing import Outcome

# Okabe and Ito's colours, which stay apart for colour-blind readers; a shape each for those who see none.
_LOOKS = (
    ("o", "#0072B2"),
    ("D", "#0072B2"),
    ("s", "#0072B2"),
    ("^", "#D55E00"),
    ("v", "#E69F00"),
    ("X", "#000000"),
    ("P", "#009E73"),
    ("p", "#CC79A7"),
    ("h", "#56B4E9"),
)
_COLUMNS = 3
# A logarithm has no zero: what is nearer than this is drawn on the lower edge.
_LEAST_PERCENT = 0.001


@drawing(font_size=9, axes_titlesize=9)
def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the plot, of the form that the path's suffix names; the same figures give the same SVG.

    Args:
        outcomes: of them those whose problem has a panel are drawn.
        path: for example of an `.svg`.
    """
    from matplotlib import pyplot as plt

    shown = [outcome for outcome in outcomes if outcome.problem.panel]
    rows = -(-len(shown) // _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(10.5, 2.7 * rows + 0.8), sharex=True, sharey=True, squeeze=False
    )
    names = policies_of(shown)
    looks = dict(zip(names, _LOOKS, strict=False))
    handles = {}
    for panel, outcome in zip(axes.flat, shown, strict=False):
        for name, figures in outcome.figures.items():
            marker, colour = looks[name]
            gap = max(figures.gap_percent, _LEAST_PERCENT)
            handles[name] = panel.scatter(
                figures.median_ms, gap, marker=marker, color=colour, s=48, edgecolor="white", linewidth=0.6
            )
            handles[name].set_clip_on(False)
            handles[name].set_zorder(3)
        line = [outcome.figures[name] for name in (FAST, PRECISE, TIGHT) if name in outcome.figures]
        heights = [max(figures.gap_percent, _LEAST_PERCENT) for figures in line]
        panel.plot([figures.median_ms for figures in line], heights, color=_LOOKS[0][1], linewidth=0.8)
        panel.set(xscale="log", yscale="log", title=outcome.problem.name)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
        panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    for panel in axes.flat[len(shown) :]:
        panel.set_visible(False)
    axes.flat[0].set_ylim(bottom=_LEAST_PERCENT)
    figure.supxlabel("time of a plan, ms (median, one thread); left and below is better", fontsize=10)
    figure.supylabel(f"gap to the lower bound, % ({_LEAST_PERCENT:g} or less: on the edge)", fontsize=10)
    legend = [handles[name] for name in names]
    figure.legend(legend, names, loc="upper center", ncols=min(len(names), 4), frameon=False)
    figure.tight_layout(rect=(0.01, 0.0, 1.0, 1.0 - 0.55 / figure.get_figheight()))
    # Neither a date nor a version: what differs from the last plot is what was measured.
    nothing = {"Date": None, "Creator": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=nothing, dpi=150)
    plt.close(figure)
