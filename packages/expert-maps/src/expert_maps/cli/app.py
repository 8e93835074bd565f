# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The application: its commands, and the options that stand before them."""

from __future__ import annotations

from typing import Annotated

import typer

from expert_maps.cli.examples import examples_of
from expert_maps.cli.output import say
from expert_maps.cli.usage import Commands

app = typer.Typer(
    name="expert-maps",
    cls=Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # Plain help is there at once, fits every terminal and code page, and its examples can be copied.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Generate, plan, check and compare expert placements for Mixture-of-Experts serving.\n\n"
        "Exit codes: 0 fine; 1 a check failed; 2 bad input, one line says what, and nothing is written; "
        "130 interrupted; 141 whoever read the output has left."
    ),
    epilog=examples_of(""),
)


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    """Take the options that stand before a subcommand."""
    if version:
        from expert_maps import __version__

        say(f"expert-maps {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        say(context.get_help())
