# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Does EPLB change what a model says?

Exit code 0: no worse. 1: worse. 3: undecided, with the number of questions that would decide. 2: bad input.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated

import typer

from expert_maps.files import write_text
from harness.accuracy import options as given
from harness.accuracy.compare import Options, as_json, compare, render
from harness.accuracy.power import Aim, normal_size, size
from harness.accuracy.report import PAGE, PLOT, gather, page
from harness.accuracy.verdict import MARGIN_POINTS
from harness.record.tables import markdown

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command("compare")
def compare_command(  # noqa: PLR0913 - an option each
    first: Annotated[Path, typer.Argument(help="Record of the baseline.")],
    second: Annotated[Path, typer.Argument(help="Record of the arm.")],
    margin: given.Margin = MARGIN_POINTS,
    largest: given.Largest = None,
    mean: given.Mean = None,
    identical: given.Identical = None,
    waive: given.Waive = None,
    floor: given.Floor = None,
    *,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="The second is the baseline once more: what rounding does alone.")
    ] = False,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Judge two records of the same questions: is the second no worse than the first?"""
    options = Options(margin, largest, mean, identical, repeat, floor, tuple(waive or ()))
    with given.bad_input():
        found = compare(first, second, options)
    typer.echo(json.dumps(as_json(found), ensure_ascii=False) if as_object else render(found))
    raise typer.Exit(found.verdict.exit_code)


@app.command("report")
def report_command(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of models, each with a folder for each arm.")
    ],
    margin: given.Margin = MARGIN_POINTS,
    largest: given.Largest = None,
    mean: given.Mean = None,
    identical: given.Identical = None,
    waive: given.Waive = None,
    floor: given.Floor = None,
) -> None:
    """Write report.md and report.png into the folder of each model."""
    options = Options(margin, largest, mean, identical, floor=floor, waived=tuple(waive or ()))
    with given.bad_input():
        gathered = [(folder, gather(folder, options)) for folder in folders]
        drawable = importlib.util.find_spec("matplotlib") is not None
        for folder, arms in gathered:
            if drawable:
                from harness.accuracy.plots import draw

                draw(arms, folder / PLOT)
            write_text(folder / PAGE, page(arms, PLOT if drawable else None))
            typer.echo(f"wrote {folder / PAGE}{f' and {PLOT}' if drawable else ''}")
    if not drawable:
        typer.echo("no plot: matplotlib is not installed", err=True)


@app.command("power")
def power_command(
    margin: Annotated[
        list[float] | None, typer.Option("--margin", help="In points; may be repeated. 1 and 2 without it.")
    ] = None,
    discordance: Annotated[
        list[float] | None,
        typer.Option(
            "--discordance",
            help="Share of questions whose outcome differs, in %; may be repeated. 1, 2, 3 and 5 without it.",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Most chance of a wrong verdict.")] = 0.05,
    power: Annotated[float, typer.Option("--power", help="Least chance of the right one.")] = 0.8,
) -> None:
    """Say about how many questions show that equal arms lose less than a margin; see `harness.accuracy.power`."""
    aim = Aim(alpha, power)
    columns = ["margin, points", "discordance", "questions", "by the usual formula"]
    with given.bad_input():
        rows = [
            [
                *(f"{points:g}", f"{percent:g} %", f"≈ {size(percent / 100, points / 100, aim)}"),
                str(normal_size(percent / 100, points / 100, aim)),
            ]
            for points in margin or (1.0, 2.0)
            for percent in discordance or (1.0, 2.0, 3.0, 5.0)
        ]
    typer.echo(
        f"Questions needed: alpha {alpha:g}, power {power:g}\n\n{markdown(columns, rows, right=1)}", nl=False
    )


# Commands that need more than this module: vLLM, lm-eval. Their modules are imported for them and for the list.
_HEAVY = {
    "run": ("harness.accuracy.run", "run_command"),
    "view": ("harness.accuracy.viewer", "view_command"),
    "validate": ("harness.accuracy.checks", "validate_command"),
    "sensitivity": ("harness.accuracy.sensitivity", "sensitivity_command"),
    "false-alarms": ("harness.accuracy.false_alarms", "false_alarms_command"),
}


def main() -> None:
    """Run the command line."""
    try:
        _run()
    except KeyboardInterrupt:  # while modules are imported; a command says more
        sys.exit(130)


def _run() -> None:
    # The bars of lm-eval and of what it imports; read where tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    asked = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    for name, (module, function) in _HEAVY.items():
        if asked not in {None, name}:
            continue
        try:
            app.command(name)(getattr(importlib.import_module(module), function))
        except ImportError as error:
            if asked == name:
                typer.echo(f"error: `{name}` cannot be imported: {error}", err=True)
                sys.exit(2)
    app()


if __name__ == "__main__":
    main()
