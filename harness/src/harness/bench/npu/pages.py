# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A run as tables, a page of Markdown and a plot of time against tokens, for which matplotlib is needed. Loads no torch."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.table import Table

from harness.bench.npu.models import MODELS
from harness.record import tables
from harness.record.drawing import drawing
from harness.record.tables import NONE, Sheet, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from harness.bench.npu.compare import Row
    from harness.record.schema import RunRecord

    Rows = Sequence[Mapping[str, Any]]

_VARIANTS = {
    "warm": "a call by itself, its buffers in the caches as far as they fit",
    "cold": "a call by itself, everything else pushed out of the caches before it, outside the timing",
    "pipelined": "one of many calls between two readings of the clock",
}
_HOW = (
    "Every implementation gave the reference's result, and left its inputs as they were, before it was timed; one that did "
    "not has no time. All that do an op take turns, round by round in one process, with a yardstick: a product or copy of "
    "torch's by which runs of other days are compared. Times are medians in µs with the interval that holds the median in 95 % "
    "of cases; behind them how many times faster than the fastest peer, the median over rounds with its interval. Peers are "
    "marked *, what the plugin runs is in bold."
)

# Okabe and Ito's colours, which stay apart for colour-blind readers; a shape each for those who see none.
_LOOKS = (
    ("o", "#0072B2"),
    ("s", "#56B4E9"),
    ("D", "#009E73"),
    ("v", "#F0E442"),
)
_PEER_LOOKS = (("^", "#D55E00"), ("X", "#CC79A7"), ("P", "#E69F00"))


def page(run: RunRecord, picture: str | None) -> str:
    """Return the page of a run; `picture` is the plot's address beside it, None for none."""
    clock = " and ".join(run.proof["clock"])
    words = " ".join(run.settings.get("words", []))
    chosen = [f"Part of all benchmarks, chosen by `{words}`."] if words else []
    return tables.page(
        title=f"Ops of the MoE layer on {run.provenance.device.name if run.provenance.device else run.name}",
        intro=[
            _HOW,
            f"{run.settings['passes']} passes, a process each; by {clock}; {run.proof['pinned']}.",
            *chosen,
        ],
        measured=tables.measured_on(run.provenance),
        picture=picture and {"title": "Time against tokens", "address": picture},
        sections=[summary(run), models(), *_all_ops(run), *_faults(run)],
        left_out=run.proof["left_out"],
    )


def _all_ops(run: RunRecord) -> list[Sheet]:
    found = [of_op(run, op, variant) for op in run.performance["abouts"] for variant in _VARIANTS]
    return [sheet for sheet in found if sheet.rows]


def _faults(run: RunRecord) -> list[Sheet]:
    rows = [[name, text] for name, text in run.proof["faults"].items()]
    return [Sheet("Without a time", "", ["benchmark", "what is wrong"], rows)] if rows else []


def models() -> Sheet:
    """Return the shapes."""
    rows = [
        [
            model.name,
            str(model.num_experts),
            str(model.top_k),
            f"{model.num_groups} / {model.topk_group}",
            f"{model.scoring_func}{' + bias' if model.biased else ''}",
            str(model.hidden_size),
            str(model.intermediate_size),
            f"{model.num_physical} / {model.ep_size}",
            str(model.local_experts),
            model.source,
        ]
        for model in MODELS.values()
    ]
    columns = ["model", "E", "K", "groups / kept", "scores", "H", "I", "slots / ranks", "E a rank", "from"]
    about = (
        "Products are timed with the experts of one rank (E a rank), to which T tokens a rank make T·K rows; experts are as "
        "uneven as recorded loads, and of few rows some have none."
    )
    return Sheet("Shapes", about, columns, rows)


def summary(run: RunRecord) -> Sheet:
    """Return, for each op and implementation of ours, how it compares with the fastest peer over all shapes."""
    rows = []
    for op, abouts in run.performance["abouts"].items():
        warm = [row for row in run.performance["rows"] if row["op"] == op and row["variant"] == "warm"]
        for name in abouts:
            found = [row["implementations"].get(name, {}).get("beside") for row in warm]
            ratios = [one["times_faster"] for one in found if one]
            if not ratios:
                continue
            slower = sum(one["high"] < 1 for one in found if one)
            figures = (statistics.geometric_mean(ratios), min(ratios), max(ratios))
            rows.append([f"{op}: {name}", str(len(ratios)), *map(number, figures), str(slower)])
    about = "Times faster than the fastest peer, warm; in how many shapes it is slower for certain."
    columns = ["op: implementation", "shapes", "mean ×", "least ×", "most ×", "slower"]
    return Sheet("Beside the peers", about, columns, rows)


def of_op(run: RunRecord, op: str, variant: str) -> Sheet:
    """Return the times of an op: a row a shape, a column an implementation."""
    abouts = run.performance["abouts"][op]
    chosen = [row for row in run.performance["rows"] if (row["op"], row["variant"]) == (op, variant)]
    serves = {row["serves"] for row in chosen}
    rows = [
        [
            f"{row['model']}, {row['phase']}, {row['tokens']}",
            number(row["bytes_moved"] / 1e6),
            *(_cell(row["implementations"].get(name)) for name in abouts),
        ]
        for row in chosen
    ]
    marked = {name: f"{name} *" if abouts[name]["is_peer"] else name for name in abouts}
    marked |= {name: f"**{marked[name]}**" for name in serves}
    notes = [f"{marked[name]}: {abouts[name]['about']}" for name in abouts] if variant == "warm" else []
    title = f"{op}, {variant}"
    about = f"{_VARIANTS[variant].capitalize()}."
    return Sheet(
        title, about, ["model, phase, tokens", "MB", *marked.values()], rows, notes, folded=variant != "warm"
    )


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NONE
    if "fault" in found:
        return "wrong"
    text = f"{number(found['median_us'])} [{number(found['low_us'])}, {number(found['high_us'])}]"
    if beside := found.get("beside"):
        text += f" ({number(beside['times_faster'])}× [{number(beside['low'])}, {number(beside['high'])}])"
    return text


def comparison(rows: Sequence[Row]) -> Table:
    """Return what a comparison found for the terminal, what fails last, where it is seen; what is the same is left out."""
    table = Table(title="against the baseline, in yardsticks", title_justify="left")
    for name in ("benchmark: implementation", "times as long", ""):
        table.add_column(name, justify="right" if name == "times as long" else "left", overflow="fold")
    for row in sorted(rows, key=lambda row: row.is_bad):
        if row.verdict != "same":
            verdict = f"{row.verdict}: {row.detail}" if row.detail else row.verdict
            style = "bold red" if row.is_bad else None
            table.add_row(row.name, NONE if row.ratio is None else number(row.ratio), verdict, style=style)
    return table


# Text stays text, which a browser draws: as outlines it would be most of the file.
@drawing(font_size=8, axes_titlesize=8, svg_fonttype="none")
def draw(run: RunRecord, path: Path) -> None:
    """Write the plot of the warm times, of the form that the suffix names; the same figures give the same SVG.

    Args:
        run: of the ops.
        path: for example of an `.svg`.
    """
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
