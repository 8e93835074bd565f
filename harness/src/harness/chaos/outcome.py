# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a run showed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.chaos.clients import Tally

if TYPE_CHECKING:
    from harness.chaos.watching import Growth


@dataclass
class Outcome:
    """What a run showed.

    Attributes:
        answers: prompts that were asked, of PROMPTS.
        tally: what came back.
        faults: of plans, by name; see `harness.chaos.faults`.
        seconds: of asking.
        growths: of the server's processes.
        looks: how often all slots were compared.
        problems: what was not as it must be.
    """

    answers: int = 0
    tally: Tally = field(default_factory=Tally)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    growths: list[Growth] = field(default_factory=list)
    looks: int = 0
    problems: list[str] = field(default_factory=list)
