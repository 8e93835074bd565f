# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Time against tokens, a panel for each op and model: matplotlib, which nothing else here needs. Loads no torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from harness.record.schema import RunRecord

    Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, which stay apart for colour-blind readers; a shape each for those who see none.
_LOOKS = (
    ("o", "#0072B2"),
    ("s", "#56B4E9"),
    ("D", "#009E73"),
    ("v", "#F0E442"),
)
_PEER_LOOKS = (("^", "#D55E00"), ("X", "#CC79A7"), ("P", "#E69F00"))


def can_draw() -> bool:
    """Return whether matplotlib is here."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(run: RunRecord, path: Path) -> None:
    """Write the plot of the warm times, of the form that the suffix names; the same figures give the same SVG.

    Args:
        run: of the ops.
        path: for example of an `.svg`.
    """
    import matplotlib as mpl

    mpl.use("agg")
    # Text stays text, which a browser draws: as outlines it would be most of the file.
    mpl.rcParams.update({"svg.hashsalt": "expert-maps", "svg.fonttype": "none"})
    mpl.rcParams.update({"font.size": 8, "axes.titlesize": 8})
    from matplotlib import pyplot as plt

    warm = [row for row in run.performance["rows"] if row["variant"] == "warm"]
    ops = list(dict.fromkeys(row["op"] for row in warm))
    models = list(dict.fromkeys(row["model"] for row in warm))
    if not ops:
        return
    size = (2.9 * len(models) + 1.6, 2.2 * len(ops) + 0.8)
    figure, axes = plt.subplots(len(ops), len(models), figsize=size, squeeze=False, layout="constrained")
    for row, op in zip(axes, ops, strict=True):
        of_op = [one for one in warm if one["op"] == op]
        looks = _looks(run.performance["abouts"][op])
        for panel, model in zip(row, models, strict=True):
            _panel(panel, [one for one in of_op if one["model"] == model], looks)
            panel.set_title(f"{op}, {model}")
        row[0].set_ylabel("µs a call")
        handles = {
            label: line
            for panel in row
            for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        row[-1].legend(
            handles.values(),
            handles.keys(),
            loc="center left",
            bbox_to_anchor=(1.02, 0.5),
            frameon=False,
            fontsize=7,
        )
    for panel in axes[-1]:
        panel.set_xlabel("tokens")
    figure.suptitle(f"Ops of the MoE layer on {run.name}: warm, median; a peer's lines are dashed")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=90)
    plt.close(figure)


def _looks(abouts: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Return marker, colour and line of each implementation of an op."""
    own = [name for name, about in abouts.items() if not about["is_peer"]]
    theirs = [name for name, about in abouts.items() if about["is_peer"]]
    found = {name: (*_LOOKS[place % len(_LOOKS)], "-") for place, name in enumerate(own)}
    return found | {name: (*_PEER_LOOKS[place % len(_PEER_LOOKS)], "--") for place, name in enumerate(theirs)}


def _panel(panel: Axes, rows: Rows, looks: Mapping[str, tuple[str, str, str]]) -> None:
    panel.set(xscale="log", yscale="log")
    panel.grid(visible=True, which="major", linewidth=0.3)
    if not rows:
        panel.text(0.5, 0.5, "too large here", ha="center", va="center", transform=panel.transAxes)
        return
    for name, (marker, colour, line) in looks.items():
        found = [(row["tokens"], row["implementations"].get(name, {}).get("median_us")) for row in rows]
        if points := sorted(point for point in found if point[1] is not None):
            panel.plot(*zip(*points, strict=True), line, marker=marker, color=colour, label=name, ms=4, lw=1)
