# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a simulation is run with, and every setting of a sweep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from expert_maps.errors import ExpertMapsError, LayoutError
from expert_maps.policies import EVERY_POLICY
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Iterable

OFF = "off"
"""The policy of a server without EPLB: the linear layout without redundant experts, which stays."""

# 44,040,192 bytes: an expert of DeepSeek-V3 and R1 in FP8, three matrices of 7168 x 2048.
DEFAULT_EXPERT_BYTES = 3 * 7168 * 2048
DEFAULT_BANDWIDTH = 25.0


@dataclass(frozen=True)
class Setting:
    """One run of a sweep.

    Attributes:
        policy: one of `expert_maps.policies.EVERY_POLICY`, or ``off``.
        ep_size: R.
        num_redundant_experts: P − E of a layer; 0 for ``off``.
        interval: steps from one plan to the next; 0 plans once and keeps that.
        max_moves: slots of a layer that one plan may change; None for any number. Only ``balanced`` can limit it.
        threshold: no new plan while the balancedness of the window, under the placement in use, is at least this.
            1 plans every time, unless all is perfectly balanced.
    """

    policy: str
    ep_size: int
    num_redundant_experts: int = 0
    interval: int = 0
    max_moves: int | None = None
    threshold: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no run can have.

        Raises:
            ExpertMapsError: the value and what was expected are named.
        """
        if self.policy not in {OFF, *EVERY_POLICY}:
            msg = f"policy is {self.policy!r}; expected one of {', '.join((OFF, *EVERY_POLICY))}"
            raise LayoutError(msg)
        as_count("ep_size", self.ep_size, 1, error=LayoutError)
        as_count("num_redundant_experts", self.num_redundant_experts, 0, error=LayoutError)
        as_count("interval", self.interval, 0)
        if self.max_moves is not None:
            as_count("max_moves", self.max_moves, 0, error=LayoutError)
            if self.policy not in {OFF, "balanced"}:
                msg = f"max_moves is {self.max_moves} for policy {self.policy}; only balanced can limit moves"
                raise LayoutError(msg)
        as_fraction("threshold", self.threshold)

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.policy == OFF:
            return f"off on {self.ep_size} ranks"
        when = "once" if self.interval == 0 else f"every {self.interval} steps"
        return f"{self.policy} + {self.num_redundant_experts} on {self.ep_size} ranks, {when}"


@dataclass(frozen=True)
class Costs:
    """What a move costs.

    Attributes:
        expert_bytes: bytes of one expert's weights in one layer.
        bandwidth: GB/s (10⁹ bytes a second) that a rank sends and, at the same time, receives.
    """

    expert_bytes: int = DEFAULT_EXPERT_BYTES
    bandwidth: float = DEFAULT_BANDWIDTH

    def __post_init__(self) -> None:
        """Refuse what no network has.

        Raises:
            ExpertMapsError: the value and what was expected are named.
        """
        as_count("expert_bytes", self.expert_bytes, 0, maximum=2**63 - 1)
        as_positive("bandwidth", self.bandwidth, "GB/s")

    def seconds(self, rounds: int) -> float:
        """Return how long so many rounds take, in each of which a rank sends and receives one expert at most."""
        return rounds * self.expert_bytes / (self.bandwidth * 1e9)


def as_positive(name: str, value: object, unit: str) -> float:
    """Return a number above 0.

    Raises:
        ExpertMapsError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        msg = f"{name} is {value!r}; expected a number of {unit} above 0"
        raise ExpertMapsError(msg)
    return float(value)


def as_fraction(name: str, value: object) -> float:
    """Return a number from 0 to 1.

    Raises:
        ExpertMapsError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        msg = f"{name} is {value!r}; expected a number from 0 to 1"
        raise ExpertMapsError(msg)
    return float(value)


def sweep(
    *,
    ep_sizes: Iterable[int],
    redundant: Iterable[int],
    policies: Iterable[str] = ("balanced",),
    intervals: Iterable[int] = (0,),
    max_moves: Iterable[int | None] = (None,),
    thresholds: Iterable[float] = (1.0,),
) -> list[Setting]:
    """Return every combination, and for each number of ranks first the server without EPLB.

    A limit on moves is left out for the policies that have none: they are run once without it.

    Raises:
        ExpertMapsError: a value that no run can have.
    """
    settings: dict[Setting, None] = {}
    names = [policy for policy in policies if policy != OFF]
    rest = list(product(list(redundant), names, list(intervals), list(max_moves), list(thresholds)))
    for ep_size in ep_sizes:
        settings[Setting(OFF, ep_size)] = None
        for copies, policy, interval, moves, threshold in rest:
            limit = moves if policy == "balanced" else None
            settings[Setting(policy, ep_size, copies, interval, limit, threshold)] = None
    return list(settings)
