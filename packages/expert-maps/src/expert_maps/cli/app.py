# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The application and its exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from expert_maps.cli.check import check
from expert_maps.cli.convert import convert
from expert_maps.cli.diff import diff
from expert_maps.cli.generate import generate
from expert_maps.cli.plan import plan
from expert_maps.cli.rescale import rescale
from expert_maps.cli.show import show
from expert_maps.cli.weights import weights

app = typer.Typer(
    name="expert-maps",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "Generate, plan, check and compare expert placements for Mixture-of-Experts serving.\n\n"
        "Exit codes: 0 fine, 1 a check failed, 2 bad input (one line says what; nothing is written)."
    ),
)
for command in (generate, plan, rescale, weights, check, show, diff, convert):
    app.command()(command)


def _show_version(requested: bool) -> None:
    if requested:
        from expert_maps import __version__

        typer.echo(f"expert-maps {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Take the options that stand before a subcommand."""


def main() -> None:
    """Run the command line; the console script's entry point."""
    app()
