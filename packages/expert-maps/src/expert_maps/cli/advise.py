# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps advise`: whether EPLB is worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expert_maps.cli.loading import LoadOptions
from expert_maps.cli.options import EpSizeOption, JsonOption, refuse_two_stdins
from expert_maps.cli.server import Choices, ServerOptions
from expert_maps.cli.sweeping import PoliciesOption, as_policies, some_numbers


def advise(
    loads: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOAD|MODEL",
            help="A load, as for plan; or a model's config.json, its folder or a known name: what can be said without a "
            "load.",
        ),
    ],
    ep_size: EpSizeOption,
    redundant: Annotated[
        str | None,
        typer.Option(
            "--redundant",
            help="Redundant experts of a layer to choose from, separated by commas. If not given: the least that divides, "
            "and one and two slots more on each rank.",
        ),
    ] = None,
    intervals: Annotated[
        str | None,
        typer.Option(
            "--intervals",
            help="Steps from one plan to the next to choose from, separated by commas; 0 plans once. If not given: 0, an "
            "eighth and a quarter of half the trace.",
        ),
    ] = None,
    policies: PoliciesOption = "balanced",
    server: ServerOptions = ServerOptions(),  # noqa: B008 - frozen
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    json: JsonOption = False,
) -> None:
    """Say whether EPLB is worth it for a recorded load: yes, no, or not enough data; with what setting, and why.

    The setting is chosen on the first half of the trace and scored on the second. The time of a layer is taken as
    a + b x tokens of the hottest rank; --step-ms and --moe-ms fit a and b to your server. What moves and the planner
    cost is subtracted. The interval is a block bootstrap over the second half: yes where all of it is above
    --least-gain, no where all of it is below.

    Of a model without a load: the memory that copies take, known rules, and what to record.
    """
    from expert_maps.cli.advised import found_advice, model_advice, model_of, print_advice
    from expert_maps.cli.costs import price_of
    from expert_maps.cli.loading import inspect_loads

    refuse_two_stdins({"LOAD": loads, "--map": said.map, "--model": said.model})
    copies = None if redundant is None else some_numbers("--redundant", redundant)
    times = None if intervals is None else some_numbers("--intervals", intervals)
    served = server.served()
    model = model_of(loads, said)
    if model is not None:
        print_advice(model_advice(model, ep_size, copies, server, served), json=json)
        return
    loaded = inspect_loads(loads, said)
    price = price_of(server, loaded, is_asked=server.device_memory is not None)
    choices = Choices(ep_size, copies, times, as_policies(policies))
    print_advice(found_advice(loaded.load, choices, server, served, price), json=json)
