# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How often `expert_maps.advice` is wrong, on traces whose answer is known: `python -m harness.bench.advice_rates`.

Writes the table that stands in packages/expert-maps/docs/advice_rates.md to standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.advice import advise
from expert_maps.simulation import Costs

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYERS, EXPERTS, RANKS, TOKENS = 2, 16, 4, 4000
# What the trace is, its steps, the redundant experts to choose from, and the right answer.
CASES: dict[str, tuple[int, tuple[int, ...], str]] = {
    "stationary skew": (96, (0, 4), "yes"),
    "uniform": (96, (0, 4), "no"),
    "drift at every step": (384, (0,), "no"),
    "too short": (20, (0, 4), "not enough data"),
}
ANSWERS = ("yes", "no", "not enough data")


def trace_of(kind: str, steps: int, seed: int) -> NDArray[np.int64]:
    """Return tokens [steps, L, E], Poisson around a popularity: uniform, log-normal, or another log-normal every step."""
    rng = np.random.default_rng(seed)
    rows = steps if kind == "drift at every step" else 1
    share = rng.lognormal(sigma=1.0, size=(rows, LAYERS, EXPERTS))
    if kind == "uniform":
        share[:] = 1.0
    share = share / share.sum(axis=2, keepdims=True)
    tokens: NDArray[np.int64] = rng.poisson(np.broadcast_to(TOKENS * share, (steps, LAYERS, EXPERTS)))
    return tokens


def answers_of(kind: str, seeds: int) -> Counter[str]:
    """Ask for advice on a trace of each seed, with experts of 1 MB at 25 GB/s, and a least gain of 2 %."""
    steps, redundant, _ = CASES[kind]
    price = Costs(expert_bytes=10**6, bandwidth=25.0)
    return Counter(
        advise(
            trace_of(kind, steps, seed), ep_size=RANKS, redundant=redundant, costs=price, least_gain=0.02
        ).answer
        for seed in range(seeds)
    )


def table(seeds: int) -> list[str]:
    """Return the table in Markdown, a line each."""
    lines = [
        f"| trace, {seeds} seeds each | steps | right | {' | '.join(ANSWERS)} | wrong yes | wrong no |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, (steps, _, right) in CASES.items():
        found = answers_of(kind, seeds)
        counts = " | ".join(str(found[answer]) for answer in ANSWERS)
        wrong = " | ".join(
            f"{0 if right == answer else found[answer] / seeds:.1%}" for answer in ("yes", "no")
        )
        lines.append(f"| {kind} | {steps} | {right} | {counts} | {wrong} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    sys.stdout.write("\n".join(table(parser.parse_args(arguments).seeds)) + "\n")


if __name__ == "__main__":
    main()
