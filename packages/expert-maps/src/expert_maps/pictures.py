# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Figures for `--plot`: rank loads as heatmaps, experts with their copies, balancedness over time and redundancy.

matplotlib is loaded by `plots.new_figure`. Colours are those of Okabe and Ito, and the map cividis: told apart by those
who see colours differently.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import metrics
from expert_maps.plots import new_figure
from expert_maps.simulation import OFF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.comparison import ComparisonRow
    from expert_maps.layered_placement import LayeredPlacement
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement
    from expert_maps.simulation import Run

    Float64Array = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#8a8a8a"
_MOST_LINES = 6
ENDINGS = (".png", ".svg")


def picture(figure: Any, ending: str) -> bytes:  # noqa: ANN401 - matplotlib may be absent
    """Return a figure as the bytes of a file.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        ending: ``.png`` or ``.svg``.
    """
    target = io.BytesIO()
    # Without a date the same figure is the same file.
    metadata = {"Date": None} if ending == ".svg" else None
    figure.savefig(target, format=ending.removeprefix("."), dpi=130, metadata=metadata)
    return target.getvalue()


def plot_placement(
    placement: Placement | LayeredPlacement, load: ExpertLoad, before: Float64Array, names: tuple[str, str]
) -> Any:  # noqa: ANN401
    """Draw rank loads before and after as heatmaps, and the experts of the worst layer with their copies.

    Args:
        placement: L layers, E experts.
        load: [steps, L, E].
        before: float64 [L, R], rank loads of what it is compared with, perhaps on other ranks.
        names: what both are called.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ExpertMapsError: matplotlib is not installed.
    """
    after = metrics.rank_load(placement, load)
    figure = new_figure(11, 8)
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 2])
    both = [_of_mean(loads) for loads in (before, after)]
    top = max(float(loads.max()) for loads in both)
    maps = []
    for column, (loads, name) in enumerate(zip(both, names, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        image = axes.imshow(
            loads, aspect="auto", cmap="cividis", vmin=0, vmax=max(top, 1.0), interpolation="nearest"
        )
        axes.set(title=f"{name}: hottest {loads.max():.2f} × mean", xlabel="rank", ylabel="MoE layer")
        _whole(axes, both=True)
        maps.append(axes)
    figure.colorbar(image, ax=maps, label="tokens / mean rank of the layer")
    _draw_experts(
        figure.add_subplot(grid[1, :]), placement, load, int(metrics.balancedness_of(before).argmin())
    )
    return figure


def _of_mean(loads: Float64Array) -> Float64Array:
    mean = loads.mean(axis=1, keepdims=True)
    return np.divide(loads, mean, out=np.zeros_like(loads), where=mean > 0)


def _draw_experts(axes: Any, placement: Placement | LayeredPlacement, load: ExpertLoad, layer: int) -> None:  # noqa: ANN401
    """Experts of a layer, the hottest first, and what each of their copies carries."""
    tokens, copies = load.total[layer], placement.replica_count[layer]
    order = np.argsort(-tokens, kind="stable")
    axes.bar(np.arange(len(order)), tokens[order], width=1.0, color="#c9c9c9", label="expert")
    axes.step(
        np.arange(len(order)),
        (tokens / copies)[order],
        where="mid",
        color=COLOURS[0],
        label="each of its copies",
    )
    more = np.flatnonzero(copies[order] > 1)
    axes.plot(
        more,
        tokens[order][more],
        linestyle="",
        marker=".",
        color=COLOURS[1],
        label="has several copies",
        clip_on=False,
    )
    axes.set(
        title=f"Experts of layer {layer}, which was the least balanced",
        xlabel="experts, the hottest first",
        ylabel="tokens",
    )
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.legend(frameon=False)
    _plain(axes)


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
            run.balancedness, color=_GREY, linestyle="--", label=f"{run.setting.name}: {run.over_steps:.3f}"
        )
    for index, run in enumerate(best[: max(_MOST_LINES - len(off), 1)]):
        label = f"{run.setting.name}: {run.over_steps:.3f}"
        mark, every = _MARKS[index % len(_MARKS)], max(1, len(run.balancedness) // 12)
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
        _plain(axes)
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
    """Draw balancedness over steps of compared plans against redundancy.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ExpertMapsError: matplotlib is not installed.
    """
    figure = new_figure(9, 5)
    axes = figure.subplots()
    _draw_redundancy(
        axes,
        {
            (row.policy, row.num_redundant_experts): row.over_steps
            for row in rows
            if row.over_steps is not None
        },
    )
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def _draw_redundancy(axes: Any, values: dict[tuple[str, int], float]) -> None:  # noqa: ANN401
    for index, name in enumerate(dict.fromkeys(name for name, _ in values)):
        points = sorted((copies, value) for (of, copies), value in values.items() if of == name)
        axes.plot(
            [copies for copies, _ in points],
            [value for _, value in points],
            color=COLOURS[index % len(COLOURS)],
            marker=_MARKS[index % len(_MARKS)],
            label=name,
        )
    axes.axhline(1, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set(
        title="Balancedness over all steps, against redundancy",
        xlabel="redundant experts of a layer",
        ylabel="mean / hottest rank",
    )


def _plain(axes: Any) -> None:  # noqa: ANN401
    _whole(axes)
    axes.spines[["top", "right"]].set_visible(False)


def _whole(axes: Any, *, both: bool = False) -> None:  # noqa: ANN401
    axes.xaxis.get_major_locator().set_params(integer=True)
    if both:
        axes.yaxis.get_major_locator().set_params(integer=True)
