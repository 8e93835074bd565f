# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of placements, by `--plot` and by ``result.plot()`` alike; matplotlib is loaded only here.

Rank loads as heatmaps, the hottest rank of each layer, experts with their copies. `expert_maps.plots_of_runs` draws what is
swept over. Colours are those of Okabe and Ito, and the map cividis: told apart by those who see colours differently.
"""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from expert_maps import metrics
from expert_maps.errors import ExpertMapsError
from expert_maps.layouts import generate_placement
from expert_maps.placement import as_placement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.layered import AnyPlacement
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import PlacementLike

    Float64Array = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8a8a8a"
ENDINGS = (".png", ".svg")


class Loaded(Protocol):
    """A plan, an evaluation or weights."""

    @property
    def load(self) -> ExpertLoad | None:
        """What was planned for, or evaluated with; None where that is not known."""
        ...

    @property
    def placement(self) -> AnyPlacement:
        """The placement."""
        ...

    @property
    def rank_load(self) -> Float64Array:
        """float64 [L, R]: tokens of each rank."""
        ...


def new_figure(width: float, height: float) -> Any:  # noqa: ANN401 - matplotlib may be absent
    """Return an empty figure that belongs to no window, and is gone when nobody holds it.

    Raises:
        ExpertMapsError: matplotlib is not installed.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        msg = f"matplotlib is not installed ({error}); expected it for figures: pip install matplotlib"
        raise ExpertMapsError(msg) from error
    return figures.Figure(figsize=(width, height), layout="constrained")


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


def plot_plan(result: Loaded, before: PlacementLike | None = None) -> Any:  # noqa: ANN401
    """Draw a placement beside another one, under the load that it was planned or evaluated for.

    Args:
        result: what `plan`, `rescale` or `evaluate` returned.
        before: of the same layers and experts; None for the linear layout without redundant experts.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ExpertMapsError: matplotlib is not installed, or ``before`` is of other layers or experts.
    """
    load, ranks = _known_load(result), result.rank_load.shape[1]
    if before is None:
        linear = generate_placement(
            "linear", num_experts=load.num_experts, ep_size=ranks, num_layers=load.num_layers
        )
        return _draw(result, load, metrics.rank_load(linear, load), ("linear layout", "this placement"))
    was = metrics.rank_load(as_placement(before, "before"), load)
    return _draw(result, load, was, ("before", "after"))


def plot_weights(weights: Loaded) -> Any:  # noqa: ANN401
    """Draw weights beside copies that take turns.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ExpertMapsError: matplotlib is not installed, or the load is not known.
    """
    load = _known_load(weights)
    even = metrics.rank_load(weights.placement, load)
    return _draw(weights, load, even, ("copies in turn", "these weights"))


def _known_load(result: Loaded) -> ExpertLoad:
    if result.load is None:
        msg = "the load of these weights is not known; expected it where they are drawn"
        raise ExpertMapsError(msg)
    return result.load


def _draw(result: Loaded, load: ExpertLoad, before: Float64Array, names: tuple[str, str]) -> Any:  # noqa: ANN401
    """Draw rank loads before and after as heatmaps, the hottest rank of each layer, and the experts of the worst.

    Args:
        result: its placement and rank loads are after.
        load: [steps, L, E].
        before: float64 [L, R], rank loads of what it is compared with, perhaps on other ranks.
        names: what both are called.
    """
    after, worst = result.rank_load, int(metrics.balancedness_of(before).argmin())
    figure = new_figure(12, 9)
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 2])
    both = [_of_mean(loads) for loads in (before, after)]
    top = max(1.0, *(float(loads.max()) for loads in both))
    maps = []
    for column, (loads, name) in enumerate(zip(both, names, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        image = axes.imshow(loads, aspect="auto", cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
        axes.set(title=f"{name}: hottest {loads.max():.2f} × mean", xlabel="rank", ylabel="MoE layer")
        _whole(axes, both=True)
        maps.append(axes)
    figure.colorbar(image, ax=maps, label="tokens / mean rank of the layer")
    _draw_layers(figure.add_subplot(grid[1, 0]), (before, after), names)
    _draw_experts(figure.add_subplot(grid[1, 1]), result.placement, load, worst)
    return figure


def _draw_layers(axes: Any, loads: tuple[Float64Array, Float64Array], names: tuple[str, str]) -> None:  # noqa: ANN401
    """The hottest rank of every layer."""
    for each, name, colour, mark in zip(loads, names, (GREY, COLOURS[0]), ("s", "o"), strict=True):
        label = f"{name}: balancedness {metrics.overall_of(each):.4f} in total"
        axes.plot(1 / metrics.balancedness_of(each), marker=mark, markersize=3, color=colour, label=label)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(title="Hottest rank of each layer", xlabel="MoE layer", ylabel="hottest / mean rank")
    # Room for the legend above the highest layer.
    axes.set_ylim(top=axes.get_ylim()[0] + 1.3 * (axes.get_ylim()[1] - axes.get_ylim()[0]))
    axes.legend(frameon=False, loc="upper left")
    plain(axes)


def _of_mean(loads: Float64Array) -> Float64Array:
    mean = loads.mean(axis=1, keepdims=True)
    return np.divide(loads, mean, out=np.zeros_like(loads), where=mean > 0)


def _draw_experts(axes: Any, placement: AnyPlacement, load: ExpertLoad, layer: int) -> None:  # noqa: ANN401
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
    plain(axes)


def plain(axes: Any) -> None:  # noqa: ANN401
    """Leave out the frame above and to the right, and write whole numbers below."""
    _whole(axes)
    axes.spines[["top", "right"]].set_visible(False)


def _whole(axes: Any, *, both: bool = False) -> None:  # noqa: ANN401
    axes.xaxis.get_major_locator().set_params(integer=True)
    if both:
        axes.yaxis.get_major_locator().set_params(integer=True)
