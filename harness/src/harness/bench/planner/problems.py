# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is planned: loads of published shapes, drawn with fixed seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

# The spread of the logarithm of an expert's load: as uneven as recorded loads of DeepSeek-V3's layers.
_SIGMA = 0.85


@dataclass(frozen=True)
class Problem:
    """One call of a planner.

    Attributes:
        name: what tables call it.
        load: float64 [L, E], tokens of each logical expert; [windows, L, E] where they are planned over time.
        num_physical: P, slots of a layer over all ranks.
        ep_size: R.
        num_groups: the router's expert groups.
        num_nodes: servers.
        current: int64 [L, P], the placement in use; None where there is none.
        max_moves: most slots of a layer that may change; None for no limit.
        panel: whether the plot shows it.
    """

    name: str
    load: Float64Array
    num_physical: int
    ep_size: int
    num_groups: int = 1
    num_nodes: int = 1
    current: NDArray[np.int64] | None = None
    max_moves: int | None = None
    panel: bool = True

    @property
    def total(self) -> Float64Array:
        """float64 [L, E]: the load, summed over windows where it has them."""
        summed: Float64Array = self.load if self.load.ndim == 2 else self.load.sum(axis=0)  # noqa: PLR2004 - [L, E]
        return summed


def lognormal(num_layers: int, num_experts: int) -> Float64Array:
    """Draw a load [L, E] whose logarithm is normal."""
    return np.random.default_rng(0).lognormal(0.0, _SIGMA, (num_layers, num_experts))


def zipf(num_layers: int, num_experts: int) -> Float64Array:
    """Return a load [L, E] in which a layer's k-th hottest expert carries k ** −s, experts in random order.

    The power s goes from 0.5 in the first layer to 1.2 in the last.
    """
    power = np.linspace(0.5, 1.2, num_layers)[:, None]
    load: Float64Array = np.arange(1, num_experts + 1) ** -power
    return np.random.default_rng(0).permuted(load, axis=1)


def quality_cases() -> list[Problem]:
    """Return the cases on which answers and times are compared."""
    deepseek = lognormal(58, 256)
    counts = ((288, 16), (288, 32), (320, 64), (288, 72), (576, 288), (288, 144))
    cases = [Problem(f"58×256 → {slots}/{ranks}", deepseek, slots, ranks) for slots, ranks in counts]
    cases += [
        Problem("58×256 → 288/32, 8 groups on 4 nodes", deepseek, 288, 32, 8, 4),
        Problem("60×384 Zipf → 416/32", zipf(60, 384), 416, 32),
        Problem("94×128 → 160/32", lognormal(94, 128), 160, 32),
    ]
    return cases


def growth_cases() -> dict[str, list[Problem]]:
    """Return the series on which it is seen how the time grows, each under its title."""

    def made(layers: int, experts: int, slots: int, ranks: int) -> Problem:
        name = f"{layers}×{experts} → {slots}/{ranks}"
        return Problem(name, lognormal(layers, experts), slots, ranks, panel=False)

    return {
        "Time by layers": [made(layers, 256, 288, 32) for layers in (16, 32, 64, 128)],
        "Time by experts, five slots a rank": [
            made(16, experts, experts * 5 // 4, experts // 4) for experts in (128, 256, 512, 1024)
        ],
        "A large case": [made(128, 1024, 1536, 512)],
    }


def recorded_tasks(file: Path) -> dict[str, Float64Array]:
    """Return counts [windows, L, E] of each task of a file."""
    with np.load(file) as recorded:
        return {name: recorded[name].astype(np.float64) for name in recorded.files}


def heavy(num_layers: int, num_experts: int) -> Float64Array:
    """Draw a load [L, E] with heavier tails: log-normal (σ 1), and every fiftieth expert four times as hot."""
    rng = np.random.default_rng(0)
    load = rng.lognormal(0.0, 1.0, (num_layers, num_experts))
    hot = rng.random(load.shape).argsort(axis=1)[:, : max(1, num_experts // 50)]
    load[np.arange(num_layers)[:, None], hot] *= 4.0
    return load


# Slots and ranks of the goals: with 256 experts, and with the 64 that the recorded loads have, as many on a rank.
FAMILY_COUNTS = {
    256: ((288, 32), (320, 64), (576, 288), (288, 144)),
    64: ((72, 8), (80, 16), (144, 72), (72, 36)),
}


def family_cases(file: Path | None) -> list[Problem]:
    """Return the cases of the goals: four sizes of four families of loads; recorded ones if there is a file of them.

    Args:
        file: counts [windows, L, 64] of each of several tasks; every layer of every task is a layer here.
    """
    families = {"log-normal": lognormal(58, 256), "heavy": heavy(58, 256), "Zipf": zipf(58, 256)}
    if file is not None:
        families["recorded"] = np.concatenate([one.sum(axis=0) for one in recorded_tasks(file).values()])
    return [
        Problem(f"{name}, {len(load)}×{load.shape[1]} → {slots}/{ranks}", load, slots, ranks, panel=False)
        for name, load in families.items()
        for slots, ranks in FAMILY_COUNTS[load.shape[1]]
    ]
