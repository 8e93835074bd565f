# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies shared by the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from expert_maps import Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Counts:
    num_layers: int
    num_experts: int
    ep_size: int
    num_physical: int


@st.composite
def counts(draw: st.DrawFn, max_layers: int = 3) -> Counts:
    """Counts for which a placement without duplicates exists: R | P and E ≤ P ≤ E · R."""
    num_experts = draw(st.integers(1, 24))
    ep_size = draw(st.integers(1, 8))
    slots = draw(st.integers(-(-num_experts // ep_size), num_experts))
    return Counts(draw(st.integers(1, max_layers)), num_experts, ep_size, slots * ep_size)


def random_slots(counts: Counts, seed: int) -> NDArray[np.int64]:
    """Return a random valid physical_to_logical: shuffled experts dealt so that no rank gets one twice."""
    rng = np.random.default_rng(seed)
    per_rank = counts.num_physical // counts.ep_size
    layers = []
    for _ in range(counts.num_layers):
        order = rng.permutation(counts.num_experts)
        # Consecutive runs of at most E distinct experts, cyclically: distinct on each rank.
        dealt = order[np.arange(counts.num_physical) % counts.num_experts].reshape(counts.ep_size, per_rank)
        layers.append(rng.permuted(rng.permutation(dealt), axis=1).ravel())
    return np.array(layers)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    drawn = draw(counts())
    slots = random_slots(drawn, draw(st.integers(0, 2**32 - 1)))
    return Placement(slots, drawn.ep_size, num_logical_experts=drawn.num_experts)


def loads(counts: Counts, seed: int, kind: str) -> NDArray[np.float64]:
    """Return a load [L, E] of a named kind."""
    rng = np.random.default_rng(seed)
    shape = (counts.num_layers, counts.num_experts)
    if kind == "zero":
        return np.zeros(shape)
    if kind == "one_hot":
        load = np.zeros(shape)
        load[np.arange(counts.num_layers), rng.integers(counts.num_experts, size=counts.num_layers)] = 1000
        return load
    if kind == "ties":
        return rng.integers(0, 3, size=shape).astype(np.float64)
    return rng.lognormal(sigma=2, size=shape)


LOAD_KINDS = ("zero", "one_hot", "ties", "lognormal")
