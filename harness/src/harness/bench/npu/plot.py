# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Time against tokens, a panel for each op and model: matplotlib, which nothing else here needs. Loads no torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from harness.bench.npu.report import copies, ops_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    Records = Sequence[Mapping[str, Any]]

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


def draw(records: Records, path: Path) -> None:
    """Write the plot of the warm times, of the form that the suffix names; the same figures give the same SVG.

    The grey line is the time that a copy of the bytes which must be moved takes.

    Args:
        records: of one run.
        path: for example of an `.svg`.
    """
    import matplotlib as mpl

    mpl.use("agg")
    # Text stays text, which a browser draws: as outlines it would be most of the file.
    text = {"svg.hashsalt": "expert-maps", "svg.fonttype": "none"}
    mpl.rcParams.update({**text, "font.size": 8, "axes.titlesize": 8})
    from matplotlib import pyplot as plt

    warm = [record for record in records if record["variant"] == "warm" and record["status"] == "ok"]
    ops = ops_of(warm)
    models = [name for name in dict.fromkeys(record["model"] for record in warm) if name != "-"]
    if not ops:
        return
    size = (2.9 * len(models) + 1.6, 2.2 * len(ops) + 0.8)
    figure, axes = plt.subplots(len(ops), len(models), figsize=size, squeeze=False, layout="constrained")
    rate = max((record["gb_per_s"] for record in copies(records)), default=None)
    for row, op in zip(axes, ops, strict=True):
        of_op = [record for record in warm if record["op"] == op]
        looks = _looks(of_op)
        for panel, model in zip(row, models, strict=True):
            _panel(panel, [record for record in of_op if record["model"] == model], looks, rate)
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
    figure.suptitle(f"Routing ops on {records[0]['device_name']}: warm, median; a peer's lines are dashed")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=90)
    plt.close(figure)


def _looks(records: Records) -> dict[str, tuple[str, str, str]]:
    """Return marker, colour and line of each implementation of an op."""
    names = dict.fromkeys((record["implementation"], record["is_peer"]) for record in records)
    own = [name for name, is_peer in names if not is_peer]
    theirs = [name for name, is_peer in names if is_peer]
    found = {name: (*_LOOKS[place % len(_LOOKS)], "-") for place, name in enumerate(own)}
    return found | {name: (*_PEER_LOOKS[place % len(_PEER_LOOKS)], "--") for place, name in enumerate(theirs)}


def _panel(
    panel: Axes, records: Records, looks: Mapping[str, tuple[str, str, str]], rate: float | None
) -> None:
    panel.set(xscale="log", yscale="log")
    panel.grid(visible=True, which="major", linewidth=0.3)
    if not records:
        panel.text(0.5, 0.5, "too large here", ha="center", va="center", transform=panel.transAxes)
        return
    for name, (marker, colour, line) in looks.items():
        points = sorted(
            (record["tokens"], record["median_us"]) for record in records if record["implementation"] == name
        )
        if points:
            panel.plot(*zip(*points, strict=True), line, marker=marker, color=colour, label=name, ms=4, lw=1)
    if rate is not None:
        moved = sorted({(record["tokens"], record["bytes_moved"] / rate / 1e3) for record in records})
        panel.plot(*zip(*moved, strict=True), color="#999999", lw=1.5, label="copy", zorder=0)
