# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every metric that the plugin exports: the only list of names; files, dashboard, alerts and pages are held to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "expert_maps_"
# On every sample: the model as vLLM's own metrics name it, and the pipeline stage, which counts its own layers.
COMMON_LABELS = ("model_name", "stage")
# Why a rearrangement that was due moved nothing.
SKIPPED = ("cost", "min_gain", "unchanged", "failed", "reloading")
# Where a moved slot's weights came from.
SOURCES = ("other_rank", "same_rank")
# Into how many groups of neighbouring layers the peak to mean is told apart, at most.
LAYER_GROUPS = 8


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: without what its kind adds.
        kind: a ``counter`` is exported as ``name_total``, a ``summary`` as ``name_sum`` and ``name_count``.
        help: in a sentence.
        label: beside `COMMON_LABELS`; None for none.
        values: all that this label may be, each of which is there from the start; empty where they follow from the model.
        waits: whether there is no sample before something was measured.
    """

    name: str
    kind: Literal["counter", "gauge", "summary"]
    help: str
    label: str | None = None
    values: tuple[str, ...] = ()
    waits: bool = False

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that a scrape shows."""
        if self.kind == "summary":
            return f"{self.name}_sum", f"{self.name}_count"
        return (f"{self.name}_total",) if self.kind == "counter" else (self.name,)


BALANCEDNESS = Metric(
    f"{PREFIX}balancedness",
    "gauge",
    "Mean over max rank load, summed over layers, of the load measured last; 1 is even.",
    waits=True,
)
PEAK_TO_MEAN = Metric(
    f"{PREFIX}peak_to_mean",
    "gauge",
    "Max over mean rank load of a group of MoE layers, of the load measured last; 1 is even.",
    label="layers",
    waits=True,
)
REARRANGEMENTS = Metric(f"{PREFIX}rearrangements", "counter", "Rearrangements that moved experts.")
SKIPS = Metric(
    f"{PREFIX}rearrangements_skipped",
    "counter",
    "Rearrangements that were due and moved nothing, by reason.",
    label="reason",
    values=SKIPPED,
)
MOVED_SLOTS = Metric(
    f"{PREFIX}moved_slots",
    "counter",
    "Slots of all ranks that got another expert, by where its weights came from.",
    label="source",
    values=SOURCES,
)
MOVED_BYTES = Metric(
    f"{PREFIX}moved_bytes",
    "counter",
    "Bytes of weights, scales included, that these slots hold.",
    label="source",
    values=SOURCES,
)
PLANNING = Metric(f"{PREFIX}planning_seconds", "summary", "Wall time of planning a rearrangement.")
MOVING = Metric(
    f"{PREFIX}moving_seconds",
    "summary",
    "Wall time from a plan, or from its first layer's move, to the last table that follows the weights.",
)
RECORDING = Metric(f"{PREFIX}recording", "gauge", "1 while expert load is recorded, else 0.")
RECORDED_ROWS = Metric(f"{PREFIX}recorded_rows", "counter", "Rows written to the record: steps with a token.")
UNWRITTEN_ROWS = Metric(
    f"{PREFIX}record_unwritten_rows", "gauge", "Steps taken into the record that are not in its file yet."
)
LAST_WRITE = Metric(
    f"{PREFIX}record_last_write_timestamp_seconds",
    "gauge",
    "When the record was written last, in seconds since 1970.",
    waits=True,
)
WRITE_FAILURES = Metric(f"{PREFIX}record_write_failures", "counter", "Writes of the record that failed.")

METRICS = (
    BALANCEDNESS,
    PEAK_TO_MEAN,
    REARRANGEMENTS,
    SKIPS,
    MOVED_SLOTS,
    MOVED_BYTES,
    PLANNING,
    MOVING,
    RECORDING,
    RECORDED_ROWS,
    UNWRITTEN_ROWS,
    LAST_WRITE,
    WRITE_FAILURES,
)
COLUMNS = ("metric", "type", "labels", "meaning")


def sample_names() -> set[str]:
    """Return every name that a scrape may show."""
    return {name for metric in METRICS for name in metric.samples}


def rows() -> list[tuple[str, ...]]:
    """Return the lines of the table of metrics, a text for each column."""
    found: list[tuple[str, ...]] = []
    for metric in METRICS:
        values = f" ({', '.join(metric.values)})" if metric.values else ""
        label = "" if metric.label is None else f"{metric.label}{values}"
        found.append((", ".join(metric.samples), metric.kind, label, metric.help))
    return found


def markdown() -> str:
    """Return the table as the page has it."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


__all__ = ["COMMON_LABELS", "LAYER_GROUPS", "METRICS", "PREFIX", "Metric", "markdown", "rows", "sample_names"]
