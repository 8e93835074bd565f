# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`--plot`: what a command found, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expert_maps.cli.writing import Output, check_output
from expert_maps.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps.cli.options import Inputs
    from expert_maps.layered_placement import LayeredPlacement
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement

PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw it, too: a name in .png or .svg. Needs matplotlib."),
]


def check_plot(path: Path | None, inputs: Inputs) -> Output:
    """Return where the picture goes.

    Raises:
        FormatError: it cannot be written there.
        ExpertMapsError: matplotlib is not installed.
    """
    if path is None:
        return Output(None)
    from expert_maps.plots import ENDINGS, new_figure

    if str(path) == "-":
        msg = "--plot is '-'; expected the name of a file in .png or .svg"
        raise FormatError(msg)
    target = check_output(path, inputs, endings=ENDINGS, name="--plot")
    new_figure(1, 1)
    return target


def write_plot(target: Output, draw: Callable[[], Any]) -> None:
    """Draw and write a picture where one was asked for; what was written is said on standard error.

    Args:
        target: where.
        draw: returns the figure.
    """
    if target.path is None:
        return
    from expert_maps.cli.output import note
    from expert_maps.plots import picture

    target.write(picture(draw(), target.path.suffix))
    note(f"picture {target.line}")


def draw_placement(
    placement: Placement | LayeredPlacement, load: ExpertLoad, current: Placement | None = None
) -> Any:  # noqa: ANN401
    """Draw a placement beside the one in use, or the linear layout without redundant experts."""
    from expert_maps.evaluate import evaluate

    return evaluate(placement, load).plot(current)
