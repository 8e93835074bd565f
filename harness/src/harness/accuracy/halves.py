# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Limits set on one half of the trials and proven on the other.

A limit that was chosen on the runs which then show that it holds proves nothing. So trials fall into two halves by their
number. On the first, a limit is set by a rule: so many times the most that a harmless change did. On the second it is
counted how many harmless changes exceed it and how many faults do not, with exact upper limits of both rates. The
verdict's own limits (`harness.accuracy.limits`) are looser than what the rule sets, as they hold for more than one
model.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from scipy.stats import binomtest

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST, MEAN, TEXTS = "log-probabilities, largest", "log-probabilities, mean", "identical texts"
NOTES = frozenset({"McNemar"})
# How many times the most of the first half, by dtype; 16 bits leave less room between rounding and a fault.
RULE = {"float32": 10.0, "bfloat16": 3.0, "float16": 3.0}
RATE, CONFIDENCE = 0.05, 0.95
# Fewest trials without an alarm that bound its rate at RATE, and so many of both halves.
NEEDED = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - RATE))
SEEDS = 2 * NEEDED

Trial = dict[str, Any]


def proves(number: int) -> bool:
    """Say whether a trial belongs to the half that proves: the odd ones."""
    return number % 2 == 1


def rate_limit(count: int, trials: int) -> float:
    """Return the exact one-sided 95 % upper limit of a rate (Clopper and Pearson); 1 without a trial."""
    if trials == 0:
        return 1.0
    return float(binomtest(count, trials, alternative="less").proportion_ci(CONFIDENCE, "exact").high)


def measured(trial: Trial, name: str) -> float | None:
    """Return the number that a criterion found."""
    found = next((one["measured"] for one in trial["criteria"] if one["name"] == name), None)
    return None if found is None else float(found)


def failed(trial: Trial, names: Sequence[str] | None = None) -> list[str]:
    """Return which criteria fail, of all or of those named; notes decide nothing, in older records too."""
    return [
        one["name"]
        for one in trial["criteria"]
        if one["outcome"] == "fail" and one["name"] not in NOTES and (names is None or one["name"] in names)
    ]


@dataclass(frozen=True)
class Proof:
    """What the second half shows of the limits that the first set.

    Attributes:
        dtype: of weights and activations.
        largest: limit of |Δ log-probability|, by the rule; None where the first half is empty.
        mean: limit of its mean, likewise.
        setting: trials in the first half.
        proving: trials in the second.
        count: of them, those that are wrong.
    """

    dtype: str
    largest: float | None
    mean: float | None
    setting: int
    proving: int
    count: int = 0

    @property
    def rate(self) -> float:
        """Upper 95 % limit of the rate."""
        return rate_limit(self.count, self.proving)

    def as_json(self) -> Trial:
        """Return it as an object of JSON."""
        found = {name: value for name, value in asdict(self).items() if name != "dtype"}
        return {**found, "rate_upper_limit_95": self.rate, "needed": NEEDED}

    def notices(self, trial: Trial) -> bool:
        """Say whether a criterion of the verdict fails, or a limit is exceeded."""
        pairs = [
            (measured(trial, name), limit) for name, limit in ((LARGEST, self.largest), (MEAN, self.mean))
        ]
        beyond = any(value is not None and limit is not None and value > limit for value, limit in pairs)
        return beyond or bool(failed(trial))


def prove_harmless(dtype: str, trials: Sequence[Trial]) -> Proof:
    """Set limits on the first half of harmless changes, and count alarms in the second."""
    setting, proving = _split(trials)
    limits: list[float | None] = []
    for name in (LARGEST, MEAN):
        values = [value for one in setting if (value := measured(one, name)) is not None]
        limits.append(RULE.get(dtype, RULE["bfloat16"]) * max(values) if values else None)
    proof = Proof(dtype, limits[0], limits[1], len(setting), len(proving))
    return replace(proof, count=sum(map(proof.notices, proving)))


def prove_faults(dtype: str, limits: Proof | None, trials: Sequence[Trial]) -> Proof:
    """Count the faults of the second half that nothing catches: neither the limits that harmless changes set, nor a criterion."""
    setting, proving = _split(trials)
    largest, mean = (limits.largest, limits.mean) if limits else (None, None)
    proof = Proof(dtype, largest, mean, len(setting), len(proving))
    return replace(proof, count=sum(not (one["stopped"] or proof.notices(one)) for one in proving))


def _split(trials: Sequence[Trial]) -> tuple[list[Trial], list[Trial]]:
    halves: tuple[list[Trial], list[Trial]] = ([], [])
    for one in trials:
        halves[proves(one["seed"] + one.get("layer", 0))].append(one)
    return halves
