# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps advise`: whether EPLB is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from expert_maps.cli.loading import LoadOptions
from expert_maps.cli.options import EpSizeOption, ExpertBytesOption, JsonOption, as_numbers, refuse_two_stdins
from expert_maps.cli.simulate import BandwidthOption, PoliciesOption, WorkersOption, as_policies
from expert_maps.errors import ExpertMapsError


@dataclass(frozen=True)
class ServerOptions:
    """What the command line says of the server; the fields are the options' names."""

    step_ms: Annotated[
        float | None,
        typer.Option(
            "--step-ms",
            help="Measured without EPLB: milliseconds that one step of the trace takes; with --moe-ms. 50 assumed if not "
            "given.",
        ),
    ] = None
    moe_ms: Annotated[
        float | None,
        typer.Option(
            "--moe-ms",
            help="Measured without EPLB: milliseconds of them that the expert layers compute; with --step-ms. 25 assumed "
            "if not given.",
        ),
    ] = None
    phase: Annotated[
        str, typer.Option("--phase", help="What the trace was recorded in: prefill, decode or mixed.")
    ] = "mixed"
    device: Annotated[
        str,
        typer.Option(
            "--device", help="a2 for Ascend Atlas A2, which cannot serve redundant experts; else other."
        ),
    ] = "other"
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", min=1, help="Tokens of a usual prompt.")
    ] = None
    device_memory: Annotated[
        float | None,
        typer.Option(
            "--device-memory",
            metavar="GB",
            help="Memory of a rank's device that the server may take, in GB (10^9 bytes): says what copies leave for the "
            "cache, and leaves out what does not fit.",
        ),
    ] = None
    other_memory: Annotated[
        float | None,
        typer.Option(
            "--other-memory",
            metavar="GB",
            help="GB of it that a rank takes beside experts and cache: other weights, activations; with --device-memory.",
        ),
    ] = None
    least_gain: Annotated[
        float,
        typer.Option(
            "--least-gain", metavar="PERCENT", help="Percent of the time that must be saved to be worth it."
        ),
    ] = 1.0
    expert_bytes: ExpertBytesOption = None
    bandwidth: BandwidthOption = None
    workers: WorkersOption = None


@dataclass(frozen=True)
class Choices:
    """What to choose from; None for what `expert_maps.advice.advise` proposes."""

    ep_size: int
    redundant: list[int] | None = None
    intervals: list[int] | None = None
    policies: Sequence[str] = ("balanced",)


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
    server: ServerOptions = ServerOptions(),
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
    from expert_maps.cli.advised import found_advice, model_advice, model_of, print_advice, served_of
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.simulated import price_of

    refuse_two_stdins({"LOAD": loads, "--map": said.map, "--model": said.model})
    copies = None if redundant is None else as_numbers("--redundant", redundant)
    times = None if intervals is None else as_numbers("--intervals", intervals)
    for name, given in (("--redundant", copies), ("--intervals", times)):
        if given == []:
            msg = f"{name} has no value; expected one or several separated by commas"
            raise ExpertMapsError(msg)
    served = served_of(server)
    model = model_of(loads, said)
    if model is not None:
        print_advice(model_advice(model, ep_size, copies, server, served), json=json)
        return
    loaded = inspect_loads(loads, said)
    price = price_of(server.expert_bytes, loaded, server.bandwidth, is_asked=server.device_memory is not None)
    choices = Choices(ep_size, copies, times, as_policies(policies))
    print_advice(found_advice(loaded.load, choices, server, served, price), json=json)
