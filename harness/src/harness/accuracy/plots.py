# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Four panels, a line for each arm: accuracy, changed texts, log-probabilities, load. Needs matplotlib."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from expert_maps.files import write_bytes
from harness.accuracy.report import limits_shown
from harness.accuracy.table import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.accuracy.report import ReportedArm

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
_VERDICTS = {"no worse": _GREEN, "worse": _RED, "undecided": _ORANGE}
# A logarithm has no zero: what is equal is drawn on the edge.
_LEAST = 1e-10
# Behind text, so that lines do not cross it.
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
# Characters of an arm's name, which takes its room from the panels, and of a model's, which has the figure's width.
_ARM_WIDTH, _MODEL_WIDTH = 20, 60
# Share of the axis that the name of a limit takes beside its line.
_LIMIT_WIDTH = 0.22
# Likewise half a character of an accuracy with its verdict.
_HALF_CHARACTER = 0.012
# Decades of a logarithmic axis, or it names ticks within a decade, which run into each other.
_DECADES = 3.0


def draw(arms: Sequence[ReportedArm], path: Path) -> None:
    """Write the plot, of the form that the path's suffix names.

    Args:
        arms: from `report.gather`; the baseline first.
        path: for example of a `.png`.

    Raises:
        FormatError: it cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "expert-maps", "font.size": 9, "axes.titlesize": 10})
    from matplotlib import pyplot as plt

    height = 2 * (0.34 * len(arms) + 1.0) + 0.6
    figure, axes = plt.subplots(2, 2, figsize=(11, height), sharey=True, squeeze=False)
    panels: Sequence[Callable[[Any, Sequence[ReportedArm]], None]] = (_accuracy, _texts, _logprobs, _load)
    for axis, panel in zip(axes.flat, panels, strict=True):
        axis.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        panel(axis, arms)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(arms)), [_short(arm.name, _ARM_WIDTH) for arm in arms])
    axes[0, 0].set_ylim(len(arms) - 0.3, -0.5)  # names of limits stand below the last arm
    first = arms[0].summary
    task = (
        f"{first.task.dataset}, {first.num_questions} questions, {first.task.num_fewshot}-shot, {first.dtype}"
    )
    title = f"{_short(first.model, _MODEL_WIDTH)}: {task}"
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    figure.tight_layout(rect=(0.0, 0.0, 1.0, 1.0 - 0.08 / height), h_pad=1.6, w_pad=2.0)
    drawn = io.BytesIO()
    form = path.suffix.removeprefix(".")
    figure.savefig(drawn, format=form, metadata={"Date": None} if form == "svg" else None, dpi=150)
    plt.close(figure)
    write_bytes(path, drawn.getvalue())


def _short(name: str, width: int) -> str:
    """Return a name of at most so many characters: its start and its end, for arms often differ in the latter."""
    name = one_line(name)
    if len(name) > width:
        kept = width - 1
        name = f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"
    return name.replace("$", r"\$")  # or it would begin a formula


def _colour(arm: ReportedArm) -> str:
    return _BLUE if arm.comparison is None else _VERDICTS[arm.comparison.verdict.answer]


def _absent(axis: Any, row: int, why: str) -> None:  # noqa: ANN401 - matplotlib is not there where types are checked
    axis.annotate(
        why,
        (0.5, row),
        xycoords=("axes fraction", "data"),
        ha="center",
        va="center",
        color=_GREY,
        style="italic",
        bbox=_PAPER,
    )


def _accuracy(axis: Any, arms: Sequence[ReportedArm]) -> None:  # noqa: ANN401 - as above
    """Accuracy with its interval, in the colour of the verdict; the baseline as a line."""
    axis.set_title("accuracy, % (95 % interval)", loc="left")
    named = []
    for row, arm in enumerate(arms):
        value, interval = arm.summary.value, arm.interval
        if value is None or interval is None:
            _absent(axis, row, f"{arm.summary.status}: no value")
            continue
        colour = _colour(arm)
        axis.plot(interval, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt", alpha=0.6)
        axis.plot(value, row, marker="o", color=colour, markersize=7, linestyle="none")
        answer = "" if arm.comparison is None else f", {arm.comparison.verdict.answer}"
        named.append((value, row, f"{value:.2f}{answer}"))
    if arms[0].summary.value is not None:
        axis.axvline(arms[0].summary.value, color=_BLUE, linewidth=0.8, linestyle=":")
    axis.margins(x=0.12)
    low, high = axis.get_xlim()
    for value, row, text in named:
        # Above the value, or as near as its room allows.
        half = _HALF_CHARACTER * len(text)
        place = min(max((value - low) / (high - low), half), 1 - half)
        axis.annotate(
            text,
            (place, row),
            xycoords=("axes fraction", "data"),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox=_PAPER,
        )


def _texts(axis: Any, arms: Sequence[ReportedArm]) -> None:  # noqa: ANN401 - as above
    """Share of texts that changed, as bars, against what rounding explains."""
    axis.set_title("changed texts, %", loc="left")
    limit = limits_shown(arms).get("identical texts")
    shares = [0.0]
    for row, arm in enumerate(arms):
        if arm.comparison is None:
            _absent(axis, row, "reference" if row == 0 else "not compared")
            continue
        pairs = arm.comparison.verdict.pairs
        count = pairs.outcomes.questions - pairs.identical
        share = 100 * count / pairs.outcomes.questions
        shares.append(share)
        axis.barh(row, share, height=0.5, color=_BLUE, alpha=0.75)
        axis.annotate(
            f"{count} of {pairs.outcomes.questions}",
            (share, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox=_PAPER,
        )
    if limit is not None:
        _limit(axis, 100 * (1 - limit), "limit", _RED)
        shares.append(100 * (1 - limit))
    axis.set_xlim(0, max(*shares, 0.1) * 1.3)


def _logprobs(axis: Any, arms: Sequence[ReportedArm]) -> None:  # noqa: ANN401 - as above
    """Largest and mean difference on a logarithm, each with its limit."""
    axis.set_title("|Δ log-prob.|, baseline's texts", loc="left")
    axis.set_xscale("log")
    looks = (("largest", "D", _BLUE, 8), ("mean", "o", _ORANGE, 5))
    seen = []
    for row, arm in enumerate(arms):
        found = None if arm.comparison is None else arm.comparison.verdict.pairs.differences
        if found is None:
            why = "not compared" if arm.comparison is None else "not measured"
            _absent(axis, row, "reference" if row == 0 else why)
            continue
        for name, marker, colour, size in looks:
            value = max(float(getattr(found, name)), _LEAST)
            seen.append(value)
            axis.plot(
                value,
                row,
                marker=marker,
                color=colour,
                markersize=size,
                linestyle="none",
                clip_on=False,
                zorder=3,
            )
        if found.largest == 0:
            axis.annotate(
                "equal",
                (_LEAST, row),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox=_PAPER,
            )
    shown = limits_shown(arms)
    limits = [
        (max(shown[criterion], _LEAST), f"{name}: limit", colour)
        for name, _, colour, _ in looks
        if (criterion := f"log-probabilities, {name}") in shown
    ]
    # The lower one is named on its left, so that names of neighbours stay apart.
    limits.sort(key=lambda one: one[0])
    if seen or limits:
        axis.set_xlim(*_range(seen, [limit for limit, _, _ in limits]))
    for number, (limit, text, colour) in enumerate(limits):
        _limit(axis, limit, text, colour, left=number < len(limits) - 1)
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=marker, color=colour, markersize=size, linestyle="none", label=name)
        for name, marker, colour, size in looks
    ]
    axis.legend(
        handles=handles,
        loc="lower right",
        frameon=False,
        ncols=2,
        bbox_to_anchor=(1.0, 1.0),
        borderpad=0,
        handletextpad=0.2,
        columnspacing=1.0,
    )


def _range(seen: Sequence[float], limits: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis that holds all values, and names outside the lowest and highest limit."""
    values = [math.log10(value) for value in (*seen, *limits)]
    low, high = min(values) - 0.6, max(values) + 0.8
    if limits:
        first, last = math.log10(min(limits)), math.log10(max(limits))
        for _ in range(20):  # each end moves the share that the other asks for; they settle
            low = min(low, (first - _LIMIT_WIDTH * high) / (1 - _LIMIT_WIDTH))
            high = max(high, (last - _LIMIT_WIDTH * low) / (1 - _LIMIT_WIDTH))
    narrow = max(0.0, _DECADES - (high - low))
    low, high = low - narrow / 2, high + narrow / 2
    return float(10**low), float(10**high)


def _load(axis: Any, arms: Sequence[ReportedArm]) -> None:  # noqa: ANN401 - as above
    """Every rank of every layer as a tick, the hottest of a layer as a dot; balancedness beside."""
    axis.set_title("rank load / layer's mean, dot: hottest", loc="left")
    axis.set_title("balancedness", loc="right")
    for row, arm in enumerate(arms):
        loads, balance = arm.rank_load, arm.summary.load.balancedness
        if balance is not None:
            axis.annotate(
                f"{balance:.4f}",
                (1.0, row),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontweight="bold",
            )
        if loads is None:
            _absent(axis, row, "not recorded")
            continue
        axis.plot(loads.ravel(), [row] * loads.size, "|", color=_BLUE, markersize=13, alpha=0.5)
        axis.plot(loads.max(axis=1), [row] * len(loads), "o", color=_RED, markersize=5, alpha=0.8)
    axis.axvline(1.0, color=_GREY, linewidth=0.8, linestyle=":")
    low, high = axis.get_xlim()
    # Room for the numbers beside.
    axis.set_xlim(low, high + 0.18 * (high - low))


def _limit(axis: Any, value: float, text: str, colour: str, *, left: bool = False) -> None:  # noqa: ANN401 - as above
    """Draw a limit with its name at its foot: on its right, or on its left."""
    axis.axvline(value, color=colour, linewidth=1.2, linestyle="--")
    axis.annotate(
        text,
        (value, 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if left else 3, 3),
        textcoords="offset points",
        ha="right" if left else "left",
        color=colour,
        fontsize=8,
    )
