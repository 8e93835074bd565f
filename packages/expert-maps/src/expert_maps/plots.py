# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a plan, an evaluation and of weights; they need matplotlib, which is loaded only here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from expert_maps import metrics
from expert_maps.errors import ExpertMapsError
from expert_maps.layouts import generate_placement
from expert_maps.placement import as_placement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement, PlacementLike

    Float64Array = NDArray[np.float64]


class Loaded(Protocol):
    """A plan, an evaluation or weights."""

    @property
    def load(self) -> ExpertLoad | None:
        """What was planned for, or evaluated with; None where that is not known."""
        ...

    @property
    def placement(self) -> Placement:
        """The placement."""
        ...

    @property
    def rank_load(self) -> Float64Array:
        """float64 [L, R]: tokens of each rank."""
        ...


# Told apart by those who see colours differently, too.
_BEFORE, _AFTER = "#b0b0b0", "#1f6fb4"


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
    load = _known_load(result)
    if before is None:
        linear = generate_placement(
            "linear",
            num_experts=load.num_experts,
            ep_size=result.rank_load.shape[1],
            num_layers=load.num_layers,
        )
        return draw(metrics.rank_load(linear, load), result.rank_load, ("linear layout", "this placement"))
    was = metrics.rank_load(as_placement(before, "before"), load)
    return draw(was, result.rank_load, ("before", "after"))


def plot_weights(weights: Loaded) -> Any:  # noqa: ANN401
    """Draw weights beside copies that take turns.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ExpertMapsError: matplotlib is not installed, or the load is not known.
    """
    even = metrics.rank_load(weights.placement, _known_load(weights))
    return draw(even, weights.rank_load, ("copies in turn", "these weights"))


def _known_load(result: Loaded) -> ExpertLoad:
    if result.load is None:
        msg = "the load of these weights is not known; expected it where they are drawn"
        raise ExpertMapsError(msg)
    return result.load


def new_figure(width: float, height: float) -> Any:  # noqa: ANN401 - matplotlib may be absent
    """Return an empty figure that belongs to no window.

    Raises:
        ExpertMapsError: matplotlib is not installed.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        msg = f"matplotlib is not installed ({error}); expected it for figures: pip install matplotlib"
        raise ExpertMapsError(msg) from error
    return figures.Figure(figsize=(width, height), layout="constrained")


def draw(before: Float64Array, after: Float64Array, names: tuple[str, str]) -> Any:  # noqa: ANN401
    """Draw the hottest rank of every layer, and all ranks of the layer that was worst.

    Args:
        before: rank loads, float64 [L, R].
        after: the same, perhaps of another number of ranks.
        names: what both are called.

    Returns:
        A ``matplotlib.figure.Figure``; it belongs to no window, and is gone when nobody holds it.

    Raises:
        ExpertMapsError: matplotlib is not installed.
    """
    figure = new_figure(10, 6.5)
    top, bottom = figure.subplots(2, 1)
    colours = (_BEFORE, _AFTER)
    for loads, name, colour in zip((before, after), names, colours, strict=True):
        label = f"{name}: balancedness {metrics.overall_of(loads):.4f} in total"
        top.plot(1 / metrics.balancedness_of(loads), marker="o", markersize=3, color=colour, label=label)
    top.axhline(1, color="black", linewidth=0.8, linestyle=":")
    top.set(title="Hottest rank of each layer", xlabel="MoE layer", ylabel="hottest / mean rank")
    worst = int(metrics.balancedness_of(before).argmin())
    for loads, name, colour, width in zip((before, after), names, colours, (0.9, 0.5), strict=True):
        mean = loads[worst].mean()
        tokens = loads[worst] / (mean if mean > 0 else 1)
        bottom.bar(np.arange(loads.shape[1]), tokens, width=width, color=colour, label=name)
    bottom.axhline(1, color="black", linewidth=0.8, linestyle=":")
    bottom.set(
        title=f"Layer {worst}, the least balanced of: {names[0]}", xlabel="rank", ylabel="tokens / mean rank"
    )
    for axes in (top, bottom):
        axes.legend(frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
