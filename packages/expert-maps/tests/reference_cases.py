# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Small problems, random and adversarial, on which each compiled part is compared with its twin."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps.policies import load_planner
from expert_maps.reference.counts import replicate
from expert_maps.reference.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

KINDS = ("uniform", "lognormal", "zipf", "ties", "zeros", "one_huge", "equal", "steep", "thirds")


class _Part(ctypes.Structure):
    """``Part`` of ``native/twins.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("experts", "ranks", "stride")),
        *((name, ctypes.c_void_p) for name in ("capacity", "weight", "count", "slot", "load", "order")),
        *((name, ctypes.c_double) for name in ("target", "least", "tolerance", "low", "high")),
        *((name, ctypes.c_int64) for name in ("steps", "recount", "kicks")),
        ("answer", ctypes.c_double),
    )


@dataclass
class Case:
    """A layer to plan: loads, and the slots of each rank."""

    weight: list[float]
    capacity: list[int]
    seed: int
    rng: np.random.Generator = field(repr=False)

    @property
    def slots(self) -> int:
        return sum(self.capacity)

    def layer(self) -> Layer:
        """Return it with the twin's counts, and nothing placed."""
        counts = replicate(self.weight, len(self.capacity), self.slots)
        return Layer(list(self.weight), list(self.capacity), count=counts)


def draw(kind: str, experts: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw loads of a named kind; those with ties and zeros are what rounding and order trip over."""
    loads: dict[str, Callable[[], NDArray[np.float64]]] = {
        "uniform": lambda: rng.random(experts),
        "lognormal": lambda: rng.lognormal(sigma=1.5, size=experts),
        "zipf": lambda: rng.permutation(60 / np.arange(1, experts + 1)),
        "ties": lambda: rng.integers(1, 5, size=experts).astype(float),
        "zeros": lambda: rng.integers(0, 2, size=experts) * rng.random(experts),
        "one_huge": lambda: np.append(rng.random(experts - 1), 30.0),
        "equal": lambda: np.full(experts, 1.0),
        "steep": lambda: rng.permutation(2.0 ** -np.arange(experts)),
        "thirds": lambda: rng.integers(1, 10, size=experts) / 3,
    }
    return loads[kind]()


def cases(number: int, salt: int, *, experts: int = 14, ranks: int = 7, two: bool = False) -> Iterator[Case]:
    """Yield problems of up to so many experts and ranks, with even slots, two on each rank, or uneven ones."""
    for seed in range(number):
        rng = np.random.default_rng([salt, seed])
        r = int(rng.integers(1, ranks + 1))
        e = int(rng.integers(1, min(experts, 2 * r if two else experts) + 1))
        least, most = -(-e // r), e
        if two and not least <= 2 <= most:
            continue
        per_rank = 2 if two else int(rng.integers(least, min(most, least + 3) + 1))
        capacity = np.full(r, per_rank)
        if not two and rng.random() < 0.4:  # uneven, as with ranks that are gone
            capacity = np.minimum(rng.integers(0, 2, size=r) + per_rank, e)
        weight = draw(KINDS[seed % len(KINDS)], e, rng)
        yield Case(weight.tolist(), capacity.tolist(), seed, rng)


def run_part(name: str, layer: Layer, **numbers: float) -> tuple[Layer, float]:
    """Run one compiled part on a copy of a layer; returns that copy afterwards, and the part's answer.

    Holders are sorted by rank: the compiled part begins with that order.
    """
    p = layer.num_slots
    ints = {"steps", "recount", "kicks"}
    arrays: dict[str, NDArray[Any]] = {
        "capacity": np.array(layer.capacity, dtype=np.int32),
        "weight": np.array(layer.weight, dtype=np.float64),
        "count": np.array(layer.count, dtype=np.int32),
        "slot": np.array([e for slots in layer.slots for e in slots] + [0] * p, dtype=np.int32),
        "load": np.zeros(layer.num_ranks),
        "order": np.zeros(layer.num_ranks, dtype=np.int32),
    }
    part = _Part(
        experts=layer.num_experts,
        ranks=layer.num_ranks,
        stride=layer.widest,
        **{key: array.ctypes.data for key, array in arrays.items()},
        **{key: int(value) if key in ints else value for key, value in numbers.items()},
    )
    assert getattr(load_planner(), f"expert_maps_part_{name}")(ctypes.byref(part)) == 0
    found = Layer(list(layer.weight), list(layer.capacity), layer.widest, arrays["count"].tolist())
    ends = np.cumsum(layer.capacity)
    found.slots = [part.tolist() for part in np.split(arrays["slot"][:p], ends[:-1])]
    found.load, found.order = arrays["load"].tolist(), arrays["order"].tolist()
    return found, float(part.answer)
