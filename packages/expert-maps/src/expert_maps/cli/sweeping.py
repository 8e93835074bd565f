# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is simulated: a sweep over settings of EPLB, and where its runs go. Options of `simulate`, one of `advise`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from expert_maps.cli.options import JsonOption, as_choice, as_max_moves, as_numbers
from expert_maps.cli.plotting import PlotOption
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from expert_maps.simulation import Setting

Value = TypeVar("Value")

PoliciesOption = Annotated[
    str,
    typer.Option(
        "--policies",
        help="Policies, separated by commas: balanced, deepseek, deepseek_hierarchical, deepseek_global, reference.",
    ),
]


@dataclass(frozen=True)
class SweepOptions:
    """What is tried out, each combination of it, beside ranks and redundancy. The fields are the options' names."""

    policies: PoliciesOption = "balanced"
    intervals: Annotated[
        str,
        typer.Option(
            "--intervals",
            help="Steps from one plan to the next; several separated by commas. 0 plans once, from the steps before "
            "--first, and keeps that.",
        ),
    ] = "0"
    max_moves: Annotated[
        str,
        typer.Option(
            "--max-moves",
            help="Slots of a layer that one plan may change, or any; several separated by commas. Only for balanced.",
        ),
    ] = "any"
    thresholds: Annotated[
        str,
        typer.Option(
            "--thresholds",
            help="Plan only when the window's balancedness is below this, 0 to 1; several separated by commas.",
        ),
    ] = "1"
    look_back: Annotated[
        int | None,
        typer.Option("--look-back", min=1, help="Steps that a plan is made from; the interval if not given."),
    ] = None
    first: Annotated[
        int | None,
        typer.Option(
            "--first",
            min=1,
            help="Steps before the first plan. If not given: the interval, or half of the trace.",
        ),
    ] = None

    def settings(self, ep_sizes: str, redundant: str) -> list[Setting]:
        """Return each combination.

        Args:
            ep_sizes: what `--ep-size` says.
            redundant: what `--redundant` says.

        Raises:
            ExpertMapsError: an option has no value, or one that it cannot have.
        """
        from expert_maps.simulation import sweep

        return sweep(
            ep_sizes=some_numbers("--ep-size", ep_sizes),
            redundant=some_numbers("--redundant", redundant),
            policies=as_policies(self.policies),
            intervals=some_numbers("--intervals", self.intervals),
            max_moves=_moves(self.max_moves),
            thresholds=_given("--thresholds", _fractions(self.thresholds)),
        )


@dataclass(frozen=True)
class RunOptions:
    """Where it runs, and where the runs go. The fields are the options' names."""

    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Run on Ray: the cluster that RAY_ADDRESS names, else one of --workers CPUs started here. Needs ray.",
        ),
    ] = False
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", help="Keep finished runs in this file, and take from it those that are there."
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write all runs, step by step: a name in .json or .parquet (pyarrow)."
        ),
    ] = None
    plot: PlotOption = None
    json: JsonOption = False


def _given(option: str, values: list[Value]) -> list[Value]:
    """Refuse an option of commas alone."""
    if not values:
        msg = f"{option} has no value; expected one or several separated by commas"
        raise ExpertMapsError(msg)
    return values


def some_numbers(option: str, text: str) -> list[int]:
    """Return numbers that are separated by commas, at least one.

    Raises:
        ExpertMapsError: there is none, or something else stands between the commas.
    """
    return _given(option, as_numbers(option, text))


def as_policies(text: str) -> list[str]:
    """Return the policies that `--policies` names.

    Raises:
        ExpertMapsError: one is not known, or none is named.
    """
    from expert_maps.policies import EVERY_POLICY
    from expert_maps.simulation import OFF

    names = _given("--policies", _words(text))
    return [as_choice("--policies", name, (OFF, *EVERY_POLICY)) for name in names]


def _moves(text: str) -> list[int | None]:
    return [as_max_moves(word, None) for word in _given("--max-moves", _words(text))]


def _fractions(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError as error:
        msg = f"--thresholds is {text!r}; expected numbers from 0 to 1 separated by commas, like 0.9,1"
        raise ExpertMapsError(msg) from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
