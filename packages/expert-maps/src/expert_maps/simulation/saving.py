# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Runs as records, as JSON and as Parquet."""

from __future__ import annotations

import importlib
import io
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps.errors import ExpertMapsError
from expert_maps.simulation.replay import Run
from expert_maps.simulation.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ARRAYS = ("hottest", "mean", "stall", "planner")
_COUNTS = ("rearrangements", "skipped", "changed_slots", "fetched_slots", "moved_bytes", "rounds")


def run_record(run: Run) -> dict[str, Any]:
    """Return a run as JSON can hold it, from which `run_from` makes it again."""
    record = {field.name: getattr(run, field.name) for field in fields(run)}
    record.update({name: getattr(run, name).tolist() for name in _ARRAYS})
    return {**record, "setting": asdict(run.setting)}


def run_from(record: Mapping[str, Any]) -> Run:
    """Return the run of a record.

    Raises:
        KeyError: a part of it is missing.
        TypeError: a part of it is of another type.
        ValueError: a number is none.
    """
    arrays: dict[str, Any] = {name: np.asarray(record[name], dtype=np.float64) for name in _ARRAYS}
    if any(array.ndim != 1 or array.shape != arrays["mean"].shape for array in arrays.values()):
        msg = "arrays of a run differ in shape"
        raise ValueError(msg)
    counts: dict[str, Any] = {name: int(record[name]) for name in _COUNTS}
    return Run(Setting(**record["setting"]), **arrays, **counts, reason=record["reason"])


def row_of(run: Run) -> dict[str, Any]:
    """Return one row of the table: the setting, and the numbers over all steps. Bytes, seconds and tokens."""
    return {
        **asdict(run.setting),
        "balancedness_over_steps": run.over_steps if run.reason is None else None,
        "hottest_tokens": float(run.hottest.sum()),
        **{name: getattr(run, name) for name in _COUNTS},
        "stall_seconds": float(run.stall.sum()),
        "planner_seconds": float(run.planner.sum()),
        "reason": run.reason,
    }


def as_parquet(runs: Sequence[Run]) -> bytes:
    """Return a Parquet file: a row a run as `row_of`, and lists of balancedness and hottest tokens by step.

    Raises:
        ExpertMapsError: pyarrow is not installed.
    """
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        msg = f"pyarrow is not installed ({error}); expected it for Parquet: pip install pyarrow"
        raise ExpertMapsError(msg) from error
    rows = [
        {**row_of(run), "balancedness": run.balancedness.tolist(), "hottest": run.hottest.tolist()}
        for run in runs
    ]
    target = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    return target.getvalue()
