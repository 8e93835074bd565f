# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Counts that are told one by one, with the ids of their layer and expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps.errors import LoadError
from expert_maps.formats.loads.values import layers_named
from expert_maps.load import refuse_bad
from expert_maps.validation import check_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.formats.loads.options import LoadOptions

    Float64Array = NDArray[np.float64]
    Int64Array = NDArray[np.int64]


def check_ids(layers: Int64Array, experts: Int64Array) -> None:
    """Refuse ids beyond what any model has, before a table of that size is made.

    Raises:
        LoadError: as said.
    """
    for name, ids, most in (("layer", layers, limits.MAX_LAYERS), ("expert", experts, limits.MAX_EXPERTS)):
        strange = ids[(ids < 0) | (ids >= most)]
        if strange.size:
            msg = f"{name} id is {strange[0]}; expected one of 0 … {most - 1}"
            raise LoadError(msg)


def tabulate(
    layers: Int64Array, experts: Int64Array, counts: Float64Array, options: LoadOptions
) -> tuple[Float64Array, tuple[int, ...]]:
    """Add counts up in a table.

    Args:
        layers: int64 [n], the layer id of each count.
        experts: int64 [n], its expert id.
        counts: float64 [n].
        options: E, if the caller says it: then what is not told is 0.

    Returns:
        float64 [L, E], and the ids of its layers, ascending.

    Raises:
        LoadError: no counts; an id beyond E; or counts are missing and nobody says how many experts there are.
    """
    if len(counts) > limits.MAX_SLOTS:
        msg = f"there are {len(counts)} counts of layers and experts; expected at most {limits.MAX_SLOTS}"
        raise LoadError(msg)
    if not len(counts):
        msg = "there are no counts; expected some for each layer and expert"
        raise LoadError(msg)
    check_ids(layers, experts)
    refuse_bad(counts, ("layer", "expert"), (layers, experts))
    labels, rows = np.unique(layers, return_inverse=True)
    said = options.known_experts
    num_experts = int(experts.max()) + 1 if said is None else said
    if int(experts.max()) >= num_experts:
        msg = f"expert id is {int(experts.max())}; expected one of 0 … {num_experts - 1}"
        raise LoadError(msg)
    check_counts(num_layers=len(labels), num_logical_experts=num_experts, error=LoadError)
    told = np.zeros((len(labels), num_experts), dtype=bool)
    told[rows, experts] = True
    if said is None and not told.all():
        layer, expert = np.unravel_index(int(told.argmin()), told.shape)
        missing = told.size - int(np.count_nonzero(told))
        msg = (
            f"layer {labels[layer]} has no count for expert {expert}{f' (and {missing - 1} more)' * (missing > 1)}; "
            "expected all, or --experts (or --model), which says how many there are: what is missing is then 0"
        )
        raise LoadError(msg)
    table = np.zeros((len(labels), num_experts))
    np.add.at(table, (rows, experts), counts)
    return table, tuple(int(label) for label in labels)


def missing_layers(labels: tuple[int, ...]) -> tuple[str, ...]:
    """Return a warning where layers between others are missing."""
    holes = sorted(set(range(labels[0], labels[-1] + 1)) - set(labels))
    return (f"there are no counts for {layers_named(holes)}, between others that have some",) if holes else ()
