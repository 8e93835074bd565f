# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A load of several steps: what windows are planned for, and which of some plans is the coolest over the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps.policies._broken import broken_layers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.load import ExpertLoad
    from expert_maps.policies.base import Cluster, Start

    BoolArray = NDArray[np.bool_]
    Int32Array = NDArray[np.int32]
    Float64Array = NDArray[np.float64]

# More windows than these say little more and cost as much again: neighbours are added up. `native/windows.h` has it too.
MOST_WINDOWS = 16
# The descent over windows starts from a plan of the sum that is no better than this: the last digits of its balance are
# of no use, and swaps that were made for them stand in the way.
START_TOLERANCE = 0.01 / 0.9


def draw_windows(load: ExpertLoad) -> Float64Array:
    """Return what the windows to come may look like, float64 [L, windows, E].

    A short history says little about single windows. So every expert is drawn towards its own mean, by the
    geometric mean of both, and the more so the fewer windows there are: as if there were one more, with its mean.
    """
    size = -(-load.num_steps // MOST_WINDOWS)
    counts = load.windows(size).counts if size > 1 else load.counts
    shrink = min(0.5, 1 / len(counts))
    mean = counts.mean(axis=0)
    # So that an expert without tokens in a window stays finite, and one without any stays at nothing.
    floor = 0.02 * mean.mean(axis=-1, keepdims=True) + np.finfo(float).tiny
    drawn = mean * ((counts + floor) / (mean + floor)) ** (1 - shrink)
    return np.ascontiguousarray(drawn.transpose(1, 0, 2))


def coolest(load: ExpertLoad, cluster: Cluster, plans: list[Int32Array], start: Start | None) -> Int32Array:
    """Return, for each layer, the plan with the least sum over steps of the hottest rank; the first of equal ones.

    Args:
        load: the steps as they are, not as they were drawn.
        cluster: what was planned for.
        plans: physical_to_logical of each plan, int32 [L, P].
        start: the placement in use, which is left as it is where no plan is cooler; None without one.

    Returns:
        int32 [L, P].
    """
    peaks = [_peaks(load, rows, cluster) for rows in plans]
    if start is not None and np.array_equal(start.held, cluster.slots_per_rank):
        stays = _keeps_rules(start, load.num_experts, cluster)
        peak = np.full(load.num_layers, np.inf)
        if stays.any():
            part = load.counts[:, stays]
            peak[stays] = _peaks_of(part, start.experts[stays], cluster)
        plans, peaks = [start.experts, *plans], [peak, *peaks]
    best = np.argmin(peaks, axis=0)
    rows: Int32Array = np.stack(plans)[best, np.arange(load.num_layers)].astype(np.int32)
    return rows


def _keeps_rules(start: Start, num_experts: int, cluster: Cluster) -> BoolArray:
    """Return the layers that may stay as they are, bool [L]: every expert is placed, and no rule is broken."""
    placed = np.zeros((len(start.experts), num_experts + 1), dtype=bool)
    placed[np.arange(len(placed))[:, None], start.experts] = True  # −1 is the last column
    stays = placed[:, :num_experts].all(axis=1) & (start.experts >= 0).all(axis=1)
    return np.asarray(stays & ~broken_layers(start, num_experts, cluster), dtype=np.bool_)


def _peaks(load: ExpertLoad, rows: Int32Array, cluster: Cluster) -> Float64Array:
    return _peaks_of(load.counts, rows, cluster)


def _peaks_of(counts: Float64Array, rows: Int32Array, cluster: Cluster) -> Float64Array:
    """Return the sum over steps of the hottest rank, float64 [L], of counts [steps, L, E] on rows [L, P]."""
    num_layers, num_experts = counts.shape[1:]
    offset = np.arange(num_layers)[:, None] * num_experts
    copies = np.bincount((rows + offset).ravel(), minlength=num_layers * num_experts)
    share = copies.reshape(num_layers, num_experts)
    # A rank without slots carries nothing, and an empty run cannot be summed.
    starts = (np.cumsum(cluster.slots_per_rank) - cluster.slots_per_rank)[cluster.slots_per_rank > 0]
    total = np.zeros(num_layers)
    for step in counts:
        per_slot = np.take_along_axis(step / share, rows, axis=1)
        total += np.add.reduceat(per_slot, starts, axis=1).max(axis=1)
    return total
