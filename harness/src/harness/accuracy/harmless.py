# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Changes that must not change answers, drawn from a seed: order, batches, placement, replica choice, ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import Placement
from harness.accuracy.offline import Order

if TYPE_CHECKING:
    from numpy.typing import NDArray

# (ranks, redundant experts of a layer); without redundant experts there is no EPLB, and the arm repeats the baseline.
SHAPES = ((2, 2), (2, 4), (4, 4), (2, 6), (2, 8), (4, 8), (1, 0))
_BATCHES = (8, 16, 32, 64)
_AT_ONCE = (16, 40, 100, 300)
_CHOICES = ("rank_offset", "weighted")


@dataclass(frozen=True)
class Shape:
    """What an engine is started with.

    Attributes:
        ranks: tensor-parallel, and so expert-parallel.
        redundant: experts of a layer, over all ranks.
        batch: most requests that run at a time (max_num_seqs).
        dtype: of weights and activations.
    """

    ranks: int
    redundant: int
    batch: int
    dtype: str

    @property
    def is_repeat(self) -> bool:
        """Whether there is no EPLB."""
        return self.redundant == 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of vLLM."""
        return (f"--tensor-parallel-size={self.ranks}", f"--max-num-seqs={self.batch}")

    @property
    def additional(self) -> dict[str, Any]:
        """The plugin's options."""
        return {"num_redundant_experts": self.redundant} if self.redundant else {}


@dataclass(frozen=True)
class Change:
    """One harmless change.

    Attributes:
        seed: everything else follows from it.
        shape: of the engine.
        at_once: questions that are handed over at a time, in the seed's order.
        choice: among replicas.
    """

    seed: int
    shape: Shape
    at_once: int
    choice: str

    @property
    def order(self) -> Order:
        """How the questions are asked."""
        return Order(self.seed, self.at_once)

    def placement(self, experts: int, layers: int) -> Placement:
        """Draw a placement for the engine."""
        rng, shape = np.random.default_rng((self.seed, 1)), self.shape
        return draw_placement(
            rng, experts=experts, ranks=shape.ranks, redundant=shape.redundant, layers=layers
        )

    def weights(self, placement: Placement) -> NDArray[np.float64] | None:
        """Draw each copy's share, [L, E, X]; None where the choice has none."""
        if self.choice != "weighted":
            return None
        return draw_weights(np.random.default_rng((self.seed, 2)), placement)

    def as_json(self) -> dict[str, Any]:
        """Return it as an object of JSON."""
        return {**asdict(self.shape), "seed": self.seed, "at_once": self.at_once, "choice": self.choice}


def draw(seed: int, dtype: str) -> Change:
    """Draw a change; seeds go through the shapes in turn, and those of a shape share an engine."""
    ranks, redundant = SHAPES[seed % len(SHAPES)]
    batch = int(np.random.default_rng((ranks, redundant)).choice(_BATCHES))
    rng = np.random.default_rng(seed)
    at_once, choice = int(rng.choice(_AT_ONCE)), str(rng.choice(_CHOICES))
    return Change(seed, Shape(ranks, redundant, batch, dtype), at_once, choice if redundant else "none")


def draw_placement(
    rng: np.random.Generator, *, experts: int, ranks: int, redundant: int, layers: int
) -> Placement:
    """Draw a valid placement: any experts have copies, on any ranks, in any slots, another in each layer.

    Args:
        rng: random numbers.
        experts: E.
        ranks: R.
        redundant: P − E, with P divisible by R.
        layers: L.

    Raises:
        ValueError: there are more copies than ranks for them.
        ExpertMapsError: P does not divide by R.
    """
    if redundant > (most := experts * (ranks - 1)):
        msg = f"redundant is {redundant}; expected at most {most}: a rank holds an expert once"
        raise ValueError(msg)
    table = [_draw_layer(rng, experts, ranks, redundant) for _ in range(layers)]
    return Placement(np.array(table), ranks, num_logical_experts=experts)


def _draw_layer(rng: np.random.Generator, experts: int, ranks: int, redundant: int) -> list[int]:
    # 1. How many copies each expert has: at most one a rank.
    spare = np.repeat(np.arange(experts), ranks - 1)
    copies = np.ones(experts, dtype=np.int64)
    copies += np.bincount(rng.permutation(spare)[:redundant], minlength=experts)
    # 2. Those with most copies first, each to the ranks with most free slots: this always comes out even.
    free = np.full(ranks, (experts + redundant) // ranks)
    held: list[list[int]] = [[] for _ in range(ranks)]
    order = rng.permutation(experts)
    for expert in order[np.argsort(-copies[order], kind="stable")]:
        ties = rng.permutation(ranks)
        for rank in ties[np.argsort(-free[ties], kind="stable")][: copies[expert]]:
            held[rank].append(int(expert))
            free[rank] -= 1
    # 3. In any order.
    return [slot for rank in rng.permutation(ranks) for slot in rng.permutation(held[rank]).tolist()]


def draw_weights(rng: np.random.Generator, placement: Placement) -> NDArray[np.float64]:
    """Draw shares of tokens for the copies of each expert: float64 [L, E, X], zero where there is no copy."""
    there = placement.logical_to_physical >= 0
    drawn = np.where(there, rng.exponential(size=there.shape), 0.0)
    return drawn / drawn.sum(axis=2, keepdims=True)
