# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommands: each is a function in a module of its own, both of the command's name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer

from expert_maps.cli.arguments import spread
from expert_maps.cli.examples import examples_of

# In the order of a day's work; what the list of commands says of each fits its line.
COMMANDS: dict[str, str] = {
    "generate": "An initial placement, by the name of its layout.",
    "plan": "A placement balanced for a recorded load.",
    "load": "What a load file holds; choose from it, convert it.",
    "compare": "Policies and amounts of redundancy side by side.",
    "advise": "Whether EPLB is worth it, and with what setting.",
    "report": "What a load says of EPLB, as one HTML file.",
    "simulate": "A trace replayed under EPLB: gains, moves, stalls.",
    "evaluate": "How a map carries a load, rank by rank.",
    "check": "Whether a map is valid, and the one that was meant.",
    "show": "The expert map and log2phy of a rank.",
    "convert": "A map in the format of another system.",
    "diff": "What moves from one map to another.",
    "rescale": "A map for fewer or more ranks, from the one in use.",
    "weights": "The best split of each expert's tokens over its copies.",
}


def load_command(name: str) -> Any:  # noqa: ANN401 - Click's, which typer brings along or needs
    """Import one subcommand and return it for the group: the others are not needed to run it."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    function = getattr(import_module(f"expert_maps.cli.{name}"), name)
    single.command(name, short_help=COMMANDS[name], epilog=examples_of(name))(spread(function))
    return typer.main.get_command(single)
