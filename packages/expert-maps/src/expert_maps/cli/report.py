# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps report`: what a load says of EPLB, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.options import EpSizeOption, JsonOption, as_choice, refuse_two_stdins
from expert_maps.cli.server import ServerOptions

if TYPE_CHECKING:
    from expert_maps.cli.writing import Output
    from expert_maps.report import Findings


def report(
    loads: LoadsArgument,
    ep_size: EpSizeOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The file to write: a name in .html, or - for standard output."),
    ],
    redundant: Annotated[
        int | None,
        typer.Option(
            "--redundant",
            help="Redundant experts of a layer, over all ranks; if not given, what advise chooses.",
        ),
    ] = None,
    policy: Annotated[str, typer.Option("--policy", help="The policy; names as for plan.")] = "balanced",
    title: Annotated[
        str | None, typer.Option("--title", help="What the load is called; its file's name if not given.")
    ] = None,
    server: ServerOptions = ServerOptions(),  # noqa: B008 - frozen
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    json: JsonOption = False,
) -> None:
    """Write one HTML file on a load: the advice and why, rank loads, experts, balancedness over time, memory.

    It needs no network, holds no script and follows the reader's light or dark. Marks, bars and cells tell their numbers
    when they are pointed at; tables hold the same. The advice is that of advise; with --redundant for that amount.
    """
    from expert_maps.cli.advised import find_for_report
    from expert_maps.cli.costs import price_of
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.writing import check_output
    from expert_maps.policies import EVERY_POLICY
    from expert_maps.report import as_html

    inputs = {"LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    target = check_output(output, inputs, endings=(".html", ".htm"), json=json)
    as_choice("--policy", policy, EVERY_POLICY)
    served = server.served()
    loaded = inspect_loads(loads, said)
    price = price_of(server, loaded, is_asked=server.device_memory is not None)
    found = find_for_report(loaded, ep_size, redundant, policy, server, served, price)
    name = loads[0].name if len(loads) == 1 else f"{loads[0].name} and {len(loads) - 1} more"
    target.write(as_html(found, ("standard input" if name == "-" else name) if title is None else title))
    _print(found, target, json=json)


def _print(found: Findings, target: Output, *, json: bool) -> None:
    from expert_maps.cli.advised import document
    from expert_maps.cli.output import print_json, say

    if json:
        print_json({**document(found.advice), "output": target.name, "replaced": target.replaces})
        return
    say(
        [
            f"worth it: {found.advice.answer}",
            *(f"why: {reason}" for reason in found.advice.reasons),
            target.line,
        ],
        err=target.is_stdout,
        wrap=True,
    )
