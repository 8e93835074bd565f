# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What one engine counts about its experts; nothing on ranks that export nothing, and nothing in a step but additions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import ExpertMapsError, moves, rank_load
from vllm_ascend_moe.core import metric_table as table

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from expert_maps import Placement
    from vllm_ascend_moe.core.exposition import MetricFiles
    from vllm_ascend_moe.core.metric_table import Metric


class Meter:
    """The metrics of one engine.

    Attributes:
        placement: by which a load of experts is counted by rank: the one served, but for moves that are under way; None
            where it is not known.
        first_layer: index of its first layer among the model's MoE layers.
        slot_bytes: of one slot's weights, scales included.
    """

    def __init__(self, files: MetricFiles | None = None) -> None:
        """Count into files; None to count nothing."""
        self.placement: Placement | None = None
        self.first_layer = 0
        self.slot_bytes = 0.0
        self._files = files
        self._began: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is counted here."""
        return self._files is not None

    # Load.

    def measure_experts(self, load: ArrayLike) -> None:
        """Measure tokens of experts by the placement served, copies sharing evenly.

        Args:
            load: [L, E].
        """
        if self._files is None or self.placement is None:
            return
        try:
            self.measure_ranks(rank_load(self.placement, load))
        except ExpertMapsError:
            return  # of another model than the placement's, which is refused elsewhere

    def measure_ranks(self, load: NDArray[np.floating]) -> None:
        """Measure tokens of ranks.

        Args:
            load: [L, R]; without a token nothing is measured.
        """
        if self._files is None or not load.any():
            return
        mean, peak = load.mean(axis=1), load.max(axis=1)
        self._set(table.BALANCEDNESS, mean.sum() / peak.sum())
        for group in np.array_split(np.arange(len(load)), min(len(load), table.LAYER_GROUPS)):
            first, last = group[0] + self.first_layer, group[-1] + self.first_layer
            total = mean[group].sum()
            ratio = peak[group].sum() / total if total > 0 else 1.0
            self._set(table.PEAK_TO_MEAN, ratio, str(first) if first == last else f"{first}-{last}")

    # Rearrangements.

    def planned(self, seconds: float) -> None:
        """A plan was made, or could not be."""
        self._observe(table.PLANNING, seconds)

    def skipped(self, reason: str) -> None:
        """A rearrangement that was due moves nothing; for one of `metric_table.SKIPPED`."""
        assert reason in table.SKIPPED
        self._add(table.SKIPS, 1, reason)

    def begin_move(self, *, anew: bool = False) -> None:
        """Experts begin to move; unless they have already, and it is not a new plan by which they do."""
        if self._began is None or anew:
            self._began = time.perf_counter()

    def moved(self, before: Placement, after: Placement) -> None:
        """Count the slots that have another expert than before, of all layers or of one.

        Args:
            before: as they were.
            after: as they are, of the same counts.
        """
        if self._files is None:
            return
        found = moves(before, after)
        fetched = found.num_fetched
        for source, slots in zip(table.SOURCES, (fetched, found.num_changed - fetched), strict=True):
            self._add(table.MOVED_SLOTS, slots, source)
            self._add(table.MOVED_BYTES, slots * self.slot_bytes, source)

    def end_move(self, placement: Placement | None, *, is_rearrangement: bool = True) -> None:
        """All layers' tables follow their weights.

        Args:
            placement: what is served now; None for what it was.
            is_rearrangement: whether anything has moved.
        """
        began, self._began = self._began, None
        if placement is not None:
            self.placement = placement
        if is_rearrangement:
            self._add(table.REARRANGEMENTS, 1)
            if began is not None:
                self._observe(table.MOVING, time.perf_counter() - began)

    def rearranged(self, after: Placement) -> None:
        """Count a rearrangement of all layers at once: slots, time, and what is served from now on."""
        if self._files is not None and self.placement is not None:
            self.moved(self.placement, after)
            self.end_move(after)

    # The record.

    def record_is(self, *, on: bool) -> None:
        """Recording has begun, or ended."""
        self._set(table.RECORDING, float(on))

    def unwritten(self, steps: int) -> None:
        """So many steps are taken into the record that are not in its file yet."""
        self._set(table.UNWRITTEN_ROWS, steps)

    def wrote(self, rows: int) -> None:
        """So many rows more are in the record's file."""
        self._add(table.RECORDED_ROWS, rows)
        self._set(table.LAST_WRITE, time.time())

    def write_failed(self) -> None:
        """The record could not be written."""
        self._add(table.WRITE_FAILURES, 1)

    def _set(self, metric: Metric, value: float, label: str | None = None) -> None:
        if self._files is not None:
            self._files.write(metric, metric.samples[0], float(value), label)

    def _add(self, metric: Metric, amount: float, label: str | None = None) -> None:
        if self._files is not None and amount:
            self._files.add(metric, metric.samples[0], float(amount), label)

    def _observe(self, metric: Metric, seconds: float) -> None:
        if self._files is not None:
            for sample, amount in zip(metric.samples, (seconds, 1.0), strict=True):
                self._files.add(metric, sample, amount)


__all__ = ["Meter"]
