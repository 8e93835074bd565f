# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of what is swept over: balancedness over time, against redundancy and against planning time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_maps.plots import COLOURS, GREY, MARKS, new_figure, plain
from expert_maps.simulation import OFF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.comparison import ComparisonRow
    from expert_maps.simulation import Run

_MOST_LINES = 6
# Of planning, for an axis of powers of ten.
_SHORTEST = 1e-4


def plot_runs(runs: Sequence[Run]) -> Any:  # noqa: ANN401
    """Draw simulated runs: balancedness over time, and over steps against redundancy.

    Over time the servers without EPLB and the best runs are drawn, 6 lines at most.

    Args:
        runs: of one trace; those without a placement are left out.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ExpertMapsError: matplotlib is not installed.
    """
    done = [run for run in runs if run.reason is None]
    figure = new_figure(11, 7.5)
    top, bottom = figure.subplots(2, 1)
    off = [run for run in done if run.setting.policy == OFF]
    best = sorted((run for run in done if run.setting.policy != OFF), key=lambda run: -run.over_steps)
    for run in off:
        top.plot(
            run.balancedness, color=GREY, linestyle="--", label=f"{run.setting.name}: {run.over_steps:.3f}"
        )
    for index, run in enumerate(best[: max(_MOST_LINES - len(off), 1)]):
        label = f"{run.setting.name}: {run.over_steps:.3f}"
        mark, every = MARKS[index % len(MARKS)], max(1, len(run.balancedness) // 12)
        top.plot(
            run.balancedness,
            color=COLOURS[index % len(COLOURS)],
            marker=mark,
            markevery=every,
            markersize=4,
            label=label,
        )
    hidden = len(off) + len(best) - len(top.lines)
    more = f" (lower runs not drawn: {hidden})" if hidden else ""
    top.set(title=f"Balancedness over time{more}", xlabel="step", ylabel="mean / hottest rank")
    _draw_redundancy(
        bottom, {(_line_of(run), run.setting.num_redundant_experts): run.over_steps for run in best}
    )
    for axes in (top, bottom):
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        plain(axes)
    return figure


def _line_of(run: Run) -> str:
    """What runs of other redundancy have in common."""
    setting = run.setting
    words = [
        f"{setting.ep_size} ranks",
        setting.policy,
        f"every {setting.interval}" if setting.interval else "once",
    ]
    words += [] if setting.max_moves is None else [f"{setting.max_moves} moves"]
    words += [] if setting.threshold == 1 else [f"below {setting.threshold:g}"]
    return ", ".join(words)


def plot_comparison(rows: Sequence[ComparisonRow]) -> Any:  # noqa: ANN401
    """Draw balancedness over steps of compared plans against redundancy, and against the time that planning took.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ExpertMapsError: matplotlib is not installed.
    """
    figure = new_figure(12, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    done = [row for row in rows if row.over_steps is not None]
    _draw_redundancy(left, {(row.policy, row.num_redundant_experts): row.over_steps or 0.0 for row in done})
    for index, name in enumerate(dict.fromkeys(row.policy for row in done)):
        own = [row for row in done if row.policy == name]
        right.plot(
            [max(row.seconds or 0.0, _SHORTEST) for row in own],
            [row.over_steps for row in own],
            linestyle="",
            color=COLOURS[index % len(COLOURS)],
            marker=MARKS[index % len(MARKS)],
            label=name,
        )
        for place, row in enumerate(own):
            right.annotate(
                f"+{row.num_redundant_experts}",
                (max(row.seconds or 0.0, _SHORTEST), row.over_steps),
                xytext=(6, -9 * place),
                textcoords="offset points",
                fontsize=8,
            )
    right.set(title="Balancedness against planning time", xlabel="seconds, of this run", xscale="log")
    right.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    plain(left)
    return figure


def _draw_redundancy(axes: Any, values: dict[tuple[str, int], float]) -> None:  # noqa: ANN401
    for index, name in enumerate(dict.fromkeys(name for name, _ in values)):
        points = sorted((copies, value) for (of, copies), value in values.items() if of == name)
        axes.plot(
            [copies for copies, _ in points],
            [value for _, value in points],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKS[index % len(MARKS)],
            label=name,
        )
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(
        title="Balancedness over all steps, against redundancy",
        xlabel="redundant experts of a layer",
        ylabel="mean / hottest rank",
    )
