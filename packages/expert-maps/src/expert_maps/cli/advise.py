# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps advise`: whether EPLB is worth it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.options import EpSizeOption, ExpertBytesOption, JsonOption, as_numbers, refuse_two_stdins
from expert_maps.cli.simulate import BandwidthOption, WorkersOption
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from expert_maps.advice import Advice
    from expert_maps.load import ExpertLoad
    from expert_maps.simulation import Costs


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
    least_gain: Annotated[
        float,
        typer.Option(
            "--least-gain", metavar="PERCENT", help="Percent of the time that must be saved to be worth it."
        ),
    ] = 1.0
    expert_bytes: ExpertBytesOption = None
    bandwidth: BandwidthOption = None
    workers: WorkersOption = None


def advise(
    loads: LoadsArgument,
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
    server: ServerOptions = ServerOptions(),
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
    json: JsonOption = False,
) -> None:
    """Say whether EPLB is worth it for a recorded load: yes, no, or not enough data; with what setting, and why.

    The setting is chosen on the first half of the trace and scored on the second. The time of a layer is taken as
    a + b x tokens of the hottest rank; --step-ms and --moe-ms fit a and b to your server. What moves and the planner
    cost is subtracted. The interval is a block bootstrap over the second half: yes where all of it is above
    --least-gain, no where all of it is below.
    """
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.simulated import price_of

    refuse_two_stdins({"LOAD": loads, "--map": said.map, "--model": said.model})
    copies = None if redundant is None else as_numbers("--redundant", redundant)
    times = None if intervals is None else as_numbers("--intervals", intervals)
    for name, given in (("--redundant", copies), ("--intervals", times)):
        if given == []:
            msg = f"{name} has no value; expected one or several separated by commas"
            raise ExpertMapsError(msg)
    loaded = inspect_loads(loads, said)
    trace = loaded.load
    price = price_of(server.expert_bytes, loaded, server.bandwidth)
    print_advice(found_advice(trace, ep_size, copies, times, server, price), json=json)


def found_advice(
    trace: ExpertLoad,
    ep_size: int,
    redundant: list[int] | None,
    intervals: list[int] | None,
    server: ServerOptions,
    price: Costs,
) -> Advice:
    """Return the advice for what the command line says.

    Raises:
        ExpertMapsError: an option is invalid.
    """
    from expert_maps.advice import advise as advise_on
    from expert_maps.advice_model import TimeModel
    from expert_maps.advice_rules import Served
    from expert_maps.cli.work import work

    model = TimeModel()
    if server.step_ms is not None and server.moe_ms is not None:
        model = TimeModel(server.step_ms, server.moe_ms, is_measured=True)
    elif server.step_ms is not None or server.moe_ms is not None:
        given, missing = ("--step-ms", "--moe-ms") if server.moe_ms is None else ("--moe-ms", "--step-ms")
        msg = f"{given} is given without {missing}; expected both: two numbers fit the time model"
        raise ExpertMapsError(msg)
    return work(
        "simulating",
        lambda progress: advise_on(
            trace,
            ep_size=ep_size,
            redundant=redundant,
            intervals=intervals,
            time_model=model,
            costs=price,
            served=Served(server.phase, server.device, server.prompt_tokens),
            least_gain=server.least_gain / 100,
            workers=server.workers or os.cpu_count() or 1,
            progress=progress,
        ),
    )


def print_advice(found: Advice, *, json: bool) -> None:
    """Print the answer, what to set and why; or one JSON object."""
    from expert_maps.cli.output import print_json, say

    if json:
        print_json(document(found))
        return
    say([f"worth it: {found.answer}", *advice_lines(found)], wrap=True)


def advice_lines(found: Advice) -> list[str]:
    """Return what to set and why, a line each."""
    from expert_maps.cli.output import as_size

    lines = []
    if found.setting is not None:
        when = f"every {found.setting.interval} steps" if found.setting.interval else "once"
        lines.append(
            f"setting: {found.setting.num_redundant_experts} redundant experts, policy {found.setting.policy}, plan {when}"
        )
        lines.append(
            f"memory: {as_size(found.bytes_per_rank or 0)} of experts on a rank, "
            f"{as_size(found.extra_bytes_per_rank or 0)} of it for redundant ones"
        )
        after = "" if found.payback_steps is None else f", saved again after {found.payback_steps:,.0f} steps"
        lines.append(f"first move and plan: {found.start_seconds or 0:.3f} s once{after}")
        lines.append(f"time model: a = {found.layer_ms:.4g} ms a layer, b = {found.token_ms:.4g} ms a token")
    lines += [f"why: {reason}" for reason in found.reasons]
    lines += [f"known rule, {rule.name}: {rule.text}" for rule in found.rules]
    return lines + [f"assumed: {assumption}" for assumption in found.assumptions]


def document(found: Advice) -> dict[str, object]:
    """Return the advice as JSON: gains as parts of 1, sizes in bytes, times in the unit of their name."""
    from dataclasses import asdict

    from expert_maps.simulation import row_of

    names = [name for name in found.__dataclass_fields__ if name not in {"setting", "rules", "chosen_from"}]
    return {
        **{name: getattr(found, name) for name in names},
        "setting": None if found.setting is None else asdict(found.setting),
        "rules": [asdict(rule) for rule in found.rules],
        "chosen_from": [row_of(run) for run in found.chosen_from],
    }
