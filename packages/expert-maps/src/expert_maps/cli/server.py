# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `advise` and `report` are told of the server, and what they may choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.costs import CostOptions
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from expert_maps.advice_model import TimeModel
    from expert_maps.advice_rules import Served


@dataclass(frozen=True)
class ServerOptions(CostOptions):
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

    def served(self) -> Served:
        """Return what the options say of the server.

        Raises:
            ExpertMapsError: one is invalid.
        """
        from expert_maps.advice_rules import Served

        if self.other_memory is not None and self.device_memory is None:
            msg = "--other-memory is given without --device-memory; expected both"
            raise ExpertMapsError(msg)
        memory = None if self.device_memory is None else _bytes("--device-memory", self.device_memory)
        other = 0 if not self.other_memory else _bytes("--other-memory", self.other_memory)
        return Served(self.phase, self.device, self.prompt_tokens, memory, other)

    def time_model(self) -> TimeModel:
        """Return the time model that the options say, or the assumed one.

        Raises:
            ExpertMapsError: one number of two is given, or one that no server has.
        """
        from expert_maps.advice_model import TimeModel

        if self.step_ms is not None and self.moe_ms is not None:
            return TimeModel(self.step_ms, self.moe_ms, is_measured=True)
        if self.step_ms is not None or self.moe_ms is not None:
            given, missing = ("--step-ms", "--moe-ms") if self.moe_ms is None else ("--moe-ms", "--step-ms")
            msg = f"{given} is given without {missing}; expected both: two numbers fit the time model"
            raise ExpertMapsError(msg)
        return TimeModel()

    def part_of_gain(self) -> float:
        """Return what `--least-gain` says, as a part of 1.

        Raises:
            ExpertMapsError: it is no percentage.
        """
        if not 0 <= self.least_gain <= 100:  # noqa: PLR2004 - percent
            msg = f"--least-gain is {self.least_gain:g}; expected percent from 0 to 100"
            raise ExpertMapsError(msg)
        return self.least_gain / 100


@dataclass(frozen=True)
class Choices:
    """What to choose from; None for what `expert_maps.advice.advise` proposes."""

    ep_size: int
    redundant: list[int] | None = None
    intervals: list[int] | None = None
    policies: Sequence[str] = ("balanced",)


def _bytes(option: str, value: float) -> int:
    if not 0 < value <= 10**6:
        msg = f"{option} is {value:g}; expected a number of GB above 0"
        raise ExpertMapsError(msg)
    return round(value * 10**9)
