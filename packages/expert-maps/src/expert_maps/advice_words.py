# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The answer of `advise`, its reasons and its assumptions, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from expert_maps.advice_model import TimeModel
    from expert_maps.simulation import Costs

Answer = Literal["yes", "no", "not enough data"]

LEAST_BLOCKS = 4
"""With fewer blocks of the bootstrap nothing is said."""


def assumptions_of(model: TimeModel, price: Costs) -> list[str]:
    """Return what was taken as given, a line each."""
    origin = "measured by you" if model.is_measured else "assumed, not measured: give your server's numbers"
    return [
        "time of a layer = a + b x tokens of the hottest rank; an expert's tokens are split evenly over its copies",
        f"a step takes {model.step_ms:g} ms without EPLB, {model.moe_ms:g} ms of it in expert layers ({origin})",
        f"an expert has {price.expert_bytes} bytes; a rank sends and receives {price.bandwidth:g} GB/s",
        "serving waits for moves and for the planner, whose time was measured on this machine",
        "the load goes on as in the trace, whose steps are in the order in which they were served",
    ]


def answer_of(interval: tuple[float, float], least: float, blocks: int) -> Answer:
    """Return what an interval of the gain says of the least that is worth it."""
    if blocks < LEAST_BLOCKS:
        return "not enough data"
    if interval[0] > least:
        return "yes"
    return "no" if interval[1] < least else "not enough data"


def why(
    answer: Answer,
    gain: float,
    interval: tuple[float, float],
    least: float,
    blocks: int,
    balance: list[float],
) -> list[str]:
    """Return the reasons for an answer, a line each.

    Args:
        answer: of `answer_of`.
        gain: part of the time that is saved.
        interval: 95 % interval of it.
        least: what must be saved.
        blocks: of the bootstrap.
        balance: balancedness without EPLB, and with it.
    """
    told = f"{gain:.1%} of the time is saved, 95 % interval {interval[0]:.1%} to {interval[1]:.1%}, moves and planner paid"
    lines = [
        told,
        f"balancedness {balance[0]:.4f} without EPLB, {balance[1]:.4f} with it, on steps not planned from",
    ]
    if blocks < LEAST_BLOCKS:
        lines.append(
            f"the second half holds {blocks} blocks of such an interval; expected at least {LEAST_BLOCKS}"
        )
    elif answer == "not enough data":
        lines.append(f"{least:.1%}, the least that is worth it, lies inside the interval: record more steps")
    elif answer == "no":
        lines.append(f"that is less than {least:.1%}, the least that is worth it")
    return lines
