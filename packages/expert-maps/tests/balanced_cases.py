# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Problems for the planner's tests: counts of every regime, loads of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from expert_maps import plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps import Placement, PlanResult

KINDS = (
    "random",
    "lognormal",
    "zipf",
    "ties",
    "zero",
    "one_hot",
    "one_huge",
    "tiny",
    "huge",
    "denormal",
    "float32",
    "int64",
    "fortran",
)


@dataclass(frozen=True)
class Problem:
    """Counts for which there is a placement, and what to draw the load from."""

    experts: int
    ranks: int
    slots: int
    kind: str
    seed: int
    layers: int = 2
    groups: int = 1
    nodes: int = 1

    def load(self, salt: int = 0) -> NDArray[Any]:
        return draw_load(self.kind, (self.layers, self.experts), self.seed + salt)

    def counts(self) -> dict[str, Any]:
        return {
            "num_physical_experts": self.slots,
            "ep_size": self.ranks,
            "num_groups": self.groups,
            "num_nodes": self.nodes,
            "allow_uneven": self.slots % self.ranks != 0,
        }

    def plan(self, load: NDArray[Any], **options: Any) -> PlanResult:  # noqa: ANN401 - as `plan` has them
        return plan(load, **self.counts(), **options)


def draw_load(kind: str, shape: tuple[int, int], seed: int) -> NDArray[Any]:
    """Return a load [L, E] of a named kind."""
    rng = np.random.default_rng(seed)
    load: NDArray[Any] = rng.random(shape)
    if kind in {"zero", "one_hot", "one_huge"}:
        load *= kind == "one_huge"
        load[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = 0 if kind == "zero" else 1e9
    elif kind == "lognormal":
        load = rng.lognormal(sigma=1.5, size=shape)
    elif kind == "zipf":
        load = rng.permuted(np.tile(1000 / np.arange(1, shape[1] + 1), (shape[0], 1)), axis=1)
    elif kind == "ties":
        load = rng.integers(0, 4, size=shape).astype(np.float64)
    elif kind == "int64":
        load = rng.integers(0, 2**40, size=shape)
    elif kind == "float32":
        load = load.astype(np.float32)
    elif kind == "fortran":
        load = np.asfortranarray(load)
    else:
        load *= {"tiny": 1e-30, "huge": 1e29, "denormal": 1e-310}.get(kind, 1.0)
    return load


@st.composite
def problems(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Problem:
    """Draw flat problems: one slot a rank, two, few more than experts, any even number, or uneven ones."""
    experts, ranks = draw(st.integers(1, 64)), draw(st.integers(1, 16))
    least, most = -(-experts // ranks), experts
    per_rank = draw(st.one_of(st.sampled_from((1, 2)), st.integers(least, most)))
    slots = ranks * min(max(per_rank, least), most)
    if draw(st.booleans()):
        slots = draw(st.one_of(st.integers(experts, min(experts + ranks, experts * ranks)), st.just(slots)))
        slots = min(max(slots + draw(st.integers(-2, 2)), experts), experts * ranks)
    return Problem(experts, ranks, slots, draw(st.sampled_from(kinds)), draw(st.integers(0, 2**31)))


@st.composite
def grouped_problems(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Problem:
    """Draw problems whose groups stay on nodes."""
    nodes, per_node = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    groups = nodes * per_node
    experts, ranks = groups * draw(st.integers(1, 6)), nodes * draw(st.integers(1, 4))
    slots = nodes * draw(st.integers(experts // nodes, experts // nodes * (ranks // nodes)))
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 2**31))
    return Problem(experts, ranks, slots, kind, seed, groups=groups, nodes=nodes)


def realistic_load(layers: int, experts: int, seed: int = 0) -> NDArray[np.float64]:
    """Return a load as skewed as those recorded of large models."""
    rng = np.random.default_rng(seed)
    return np.floor(rng.lognormal(sigma=0.7, size=(layers, experts)) * 2000)


def nodes_of_group(placement: Placement, layer: int, group: int, groups: int, nodes: int) -> set[int]:
    """Return the nodes on which a group's experts have copies."""
    size = placement.num_logical_experts // groups
    inside = placement.physical_to_logical[layer] // size == group
    on = placement.slot_rank[inside] // (placement.ep_size // nodes)
    return set(on.tolist())
