# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The application: its commands, and the options that stand before them."""

from __future__ import annotations

from typing import Annotated

import typer

from expert_maps.cli.check import check
from expert_maps.cli.compare import compare
from expert_maps.cli.diff import diff
from expert_maps.cli.evaluate import evaluate
from expert_maps.cli.examples import examples_of
from expert_maps.cli.generate import generate
from expert_maps.cli.output import say
from expert_maps.cli.plan import plan
from expert_maps.cli.rescale import rescale
from expert_maps.cli.show import show
from expert_maps.cli.usage import Commands
from expert_maps.cli.weights import weights

app = typer.Typer(
    name="expert-maps",
    cls=Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # Plain help is there at once, fits every terminal and code page, and its examples can be copied.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=(
        "Generate, plan, check and compare expert placements for Mixture-of-Experts serving.\n\n"
        "Exit codes: 0 fine; 1 a check failed; 2 bad input, one line says what, and nothing is written; "
        "130 interrupted; 141 whoever read the output has left."
    ),
    epilog=examples_of(""),
)

# In the order of a day's work; what the list of commands says of each fits its line.
for command, summary in (
    (generate, "An initial placement, by the name of its layout."),
    (plan, "A placement balanced for a recorded load."),
    (compare, "Policies and amounts of redundancy side by side."),
    (evaluate, "How a map carries a load, rank by rank."),
    (check, "Whether a map is valid, and the one that was meant."),
    (show, "The expert map and log2phy of a rank."),
    (diff, "What moves from one map to another."),
    (rescale, "A map for fewer or more ranks, from the one in use."),
    (weights, "The best split of each expert's tokens over its copies."),
):
    app.command(short_help=summary, epilog=examples_of(command.__name__))(command)


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
