# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Four panels, a line for each arm: accuracy, changed texts, log-probabilities, load. Needs matplotlib.

What is said of an arm stands beside the panel, where it crosses nothing; limits are dashed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expert_maps.files import write_bytes
from harness.accuracy.limits import LIMITS
from harness.record.drawing import drawing
from harness.record.tables import NONE, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.accuracy.overview import ReportedArm

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_VERDICTS = {"no worse": _GREEN, "worse": _RED, "undecided": _ORANGE}
# A logarithm has no zero: what is equal is drawn on the edge.
_LEAST = 1e-10
_LOGPROBS = ("log-probabilities, largest", "log-probabilities, mean")
# Characters of an arm's name, which takes its room from the panels, and of a model's, which has the figure's width.
_ARM_WIDTH, _MODEL_WIDTH = 20, 60


@dataclass(frozen=True)
class Cell:
    """What a panel shows of an arm.

    Attributes:
        text: beside the panel.
        marks: values, their marker and colour.
    """

    text: str
    marks: tuple[tuple[Sequence[float], str, str], ...] = ()


@drawing(font_size=9, axes_titlesize=10)
def draw(arms: Sequence[ReportedArm], path: Path) -> None:
    """Write the plot, of the form that the path's suffix names.

    Args:
        arms: from `report.gather`; the baseline first.
        path: for example of a `.png`.

    Raises:
        FormatError: it cannot be written.
    """
    from matplotlib import pyplot as plt

    height = 2 * (0.34 * len(arms) + 1.0) + 0.6
    figure, axes = plt.subplots(2, 2, figsize=(11, height), sharey=True, squeeze=False, layout="constrained")
    limits = limits_shown(arms)
    changed = [100 * (1 - limits["identical texts"])] if "identical texts" in limits else []
    apart = [max(limits[name], _LEAST) for name in _LOGPROBS if name in limits]
    axes[1, 0].set_xscale("log")
    for axis, title, cell, dashed in (
        (axes[0, 0], "accuracy, % (95 % interval)", _accuracy, []),
        (axes[0, 1], "changed texts, %", _texts, changed),
        (axes[1, 0], "|Δ log-probability|: ◆ largest, ● mean", _logprobs, apart),
        (axes[1, 1], "rank load / layer's mean; balancedness", _load, []),
    ):
        _panel(axis, title, [cell(arm) for arm in arms], dashed)
    axes[0, 0].set_yticks(range(len(arms)), [short(arm.name, _ARM_WIDTH) for arm in arms])
    axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    first = arms[0].summary
    task = (
        f"{first.task.dataset}, {first.num_questions} questions, {first.task.num_fewshot}-shot, {first.dtype}"
    )
    figure.suptitle(f"{short(first.model, _MODEL_WIDTH)}: {task}", fontsize=11, fontweight="bold")
    drawn = io.BytesIO()
    form = path.suffix.removeprefix(".")
    figure.savefig(drawn, format=form, metadata={"Date": None} if form == "svg" else None, dpi=150)
    plt.close(figure)
    write_bytes(path, drawn.getvalue())


def limits_shown(arms: Sequence[ReportedArm]) -> dict[str, float]:
    """Return limits by criterion: those of the first verdict, else what was asked for, or of the dtype."""
    for arm in arms:
        if arm.comparison is not None:
            criteria = arm.comparison.verdict.criteria
            return {one.name: one.bound for one in criteria if one.bound is not None}
    known, options = LIMITS.get(arms[0].summary.dtype), arms[0].options
    asked = zip(_LOGPROBS, (options.largest, options.mean), strict=True)
    limits = {} if known is None else dict(zip(_LOGPROBS, (known.largest, known.mean), strict=True))
    return limits | {name: limit for name, limit in asked if limit is not None}


def short(name: str, width: int) -> str:
    """Return a name of at most so many characters: its start and its end, for arms often differ in the latter."""
    name = one_line(name)
    if len(name) > width:
        kept = width - 1
        name = f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"
    return name.replace("$", r"\$")  # or it would begin a formula


def _panel(axis: Any, title: str, cells: Sequence[Cell], dashed: Sequence[float]) -> None:  # noqa: ANN401 - matplotlib is not there where types are checked
    axis.set_title(title, loc="left")
    axis.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    for row, cell in enumerate(cells):
        for values, marker, colour in cell.marks:
            places = [row] * len(values)
            if marker == "-":
                axis.plot(values, places, color=colour, linewidth=2.2, alpha=0.6)
            else:
                axis.plot(values, places, color=colour, marker=marker, linestyle="none", alpha=0.8)
        axis.text(1.02, row, cell.text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    for limit in dashed:
        axis.axvline(limit, color=_RED, linewidth=1.2, linestyle="--")
    axis.margins(x=0.08)


def _accuracy(arm: ReportedArm) -> Cell:
    value, interval = arm.summary.value, arm.interval
    if value is None or interval is None:
        return Cell(f"{arm.summary.status}: no value")
    colour = _BLUE if arm.comparison is None else _VERDICTS[arm.comparison.verdict.answer]
    answer = "" if arm.comparison is None else f", {arm.comparison.verdict.answer}"
    return Cell(f"{value:.2f}{answer}", ((interval, "-", colour), ([value], "o", colour)))


def _texts(arm: ReportedArm) -> Cell:
    if arm.comparison is None:
        return Cell(_unlike(arm))
    pairs = arm.comparison.verdict.pairs
    count = pairs.outcomes.questions - pairs.identical
    share = 100 * count / pairs.outcomes.questions
    return Cell(f"{count} of {pairs.outcomes.questions}", (([0, share], "-", _BLUE), ([share], "o", _BLUE)))


def _logprobs(arm: ReportedArm) -> Cell:
    if arm.comparison is None:
        return Cell(_unlike(arm))
    found = arm.comparison.verdict.pairs.differences
    if found is None:
        return Cell("not measured")
    marks = (([max(found.largest, _LEAST)], "D", _BLUE), ([max(found.mean, _LEAST)], "o", _ORANGE))
    return Cell(f"{found.largest:.1e}" if found.largest else "equal", marks)


def _load(arm: ReportedArm) -> Cell:
    loads, balance = arm.rank_load, arm.summary.load.balancedness
    if loads is None:
        return Cell("not recorded")
    marks = ((loads.ravel().tolist(), "|", _BLUE), (loads.max(axis=1).tolist(), "o", _RED))
    return Cell(NONE if balance is None else f"{balance:.4f}", marks)


def _unlike(arm: ReportedArm) -> str:
    return "reference" if arm.summary.role == "baseline" else "not compared"
