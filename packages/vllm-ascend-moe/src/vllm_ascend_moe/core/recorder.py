# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a server's expert load: a row a step, written whole or not at all."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import ExpertMapsError, read_load
from expert_maps.formats.loads import write_load
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.core.meter import Meter

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Past these the older rows are added up in pairs: the file stays bounded, and no token is lost.
MAX_ROWS = 4096
MAX_NUMBERS = 4_000_000
# A server that is idle writes too, so that being killed costs little.
MAX_SECONDS = 5.0


class RecordError(ExpertMapsError):
    """A record cannot be continued; the message says what to change."""


class LoadRecorder:
    """Collects the load of steps and writes it to a file that ``expert-maps plan`` reads.

    A file that is there already is continued: a server that was restarted loses nothing. While serving, the
    file is written by a thread of its own, because compressing takes longer than a step: after some steps, and
    after some seconds.

    It can be stopped and started again, by `vllm_ascend_moe.report` and over HTTP; steps in between are not recorded.

    Attributes:
        path: the file.
        interval: steps after which it is written.
        is_on: whether steps are recorded.
        failure: why the last write failed; None where it did not.
    """

    def __init__(
        self,
        path: str,
        num_layers: int,
        num_experts: int,
        interval: int = 100,
        *,
        is_on: bool = True,
        meter: Meter | None = None,
    ) -> None:
        """Read what is there.

        Args:
            path: ends in ``.npz`` or ``.npy``; its folder exists.
            num_layers: L.
            num_experts: E, logical.
            interval: steps after which it is written.
            is_on: whether recording begins at once.
            meter: counts rows, and measures the load of each write; None for none.

        Raises:
            RecordError: the file is of another model, or the folder is missing.
            ExpertMapsError: the file is no load.
        """
        self.path = path
        self.interval = interval
        self.is_on = is_on
        self.failure: str | None = None
        self._meter = meter or Meter()
        self._meter.record_is(on=is_on)
        # Steps that were added; that were taken to the host; that are in the file, or had no token.
        self._added = self._fetched = self._written = 0
        # Counts how often the record was begun anew, so that a write under way does not bring rows back.
        self._epoch = 0
        self._shape = (num_layers, num_experts)
        self._rows = self._read()
        self._pending: list[torch.Tensor] = []  # of single steps, where they were counted
        self._fresh: list[NDArray[np.int64]] = []  # those of them that had a token
        self._fetching = threading.Lock()
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._writer: threading.Thread | None = None

    def _read(self) -> list[NDArray[np.int64]]:
        path = Path(self.path)
        if not path.absolute().parent.is_dir():
            msg = f"record_path is {self.path}; there is no folder {path.absolute().parent}, create it first"
            raise RecordError(msg)
        if not path.exists() or path.stat().st_size == 0:
            return []
        counts = read_load(path).counts
        if counts.shape[1:] != self._shape:
            msg = (
                f"{self.path} is a record of {counts.shape[1]} layers and {counts.shape[2]} experts; expected "
                f"{self._shape[0]} and {self._shape[1]}, as the model has: name another record_path"
            )
            raise RecordError(msg)
        if (counts % 1).any():
            msg = f"{self.path} holds fractions; expected a record of whole tokens: name another record_path"
            raise RecordError(msg)
        logger.info("continuing the record %s, which has %d steps", self.path, len(counts))
        return list(counts.astype(np.int64))

    @property
    def num_rows(self) -> int:
        """Rows that the file will have after the next write."""
        with self._fetching:
            self._fetch()
            count = len(self._rows) + len(self._fresh)
        most = _most_rows(self._shape)
        while count > most:
            half = max(2, count // 2)
            count -= half // 2
        return count

    def add(self, load: torch.Tensor) -> None:
        """Add a step, and write from time to time; nothing waits for the device.

        Args:
            load: integers [L, E], on any device; kept there until the next write, so it must be the
                recorder's own. A step without a token is none.
        """
        if not self.is_on:
            return
        self._pending.append(load)
        self._added += 1
        self._meter.unwritten(max(0, self._added - self._written))
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="expert-load-record", daemon=True)
            self._writer.start()
        if len(self._pending) >= self.interval:
            self._due.set()

    def flush(self) -> None:
        """Write what was collected, and return when it is written.

        Raises:
            FormatError: the file cannot be written; what was collected is kept.
        """
        with self._lock:
            with self._fetching:
                taken = self._fetch()
                fresh, epoch = list(self._fresh), self._epoch
                rows = [*self._rows, *fresh]
            if fresh:
                rows = _bounded(rows)
                self._write_file(rows)
                self._meter.measure_experts(np.sum(fresh, axis=0))
                self._meter.wrote(len(fresh))
            with self._fetching:
                self._written = taken
                if epoch == self._epoch and fresh:
                    self._rows = rows
                    del self._fresh[: len(fresh)]
            self._meter.unwritten(max(0, self._added - taken))

    # What is asked for while a server serves.

    def start(self, *, fresh: bool = False) -> None:
        """Record the steps that follow.

        Args:
            fresh: whether the rows until now are dropped: the file holds them until its next write. Else it is continued.
        """
        if fresh:
            with self._fetching:
                self._pending.clear()
                self._fresh, self._rows = [], []
                self._fetched = self._written = self._added
                self._epoch += 1
            self._meter.unwritten(0)
        self.is_on = True
        self._meter.record_is(on=True)

    def stop(self) -> None:
        """Record nothing more, until it is started again; what was collected is kept."""
        self.is_on = False
        self._meter.record_is(on=False)

    def request_write(self) -> int:
        """Have what was collected written by the recorder's thread; return how many steps will be in the file then."""
        self.failure = None
        self._due.set()
        return self._added

    def status(self) -> dict[str, Any]:
        """Return plain values: ``recording``, ``path``, ``rows`` in the file, ``unwritten_steps``, ``failure``.

        And ``added_steps`` and ``written_steps``, by which one waits for what `request_write` has returned.
        """
        return {
            "recording": self.is_on,
            "path": str(Path(self.path).absolute()),
            "rows": len(self._rows),
            "unwritten_steps": max(0, self._added - self._written),
            "added_steps": self._added,
            "written_steps": self._written,
            "failure": self.failure,
        }

    def _write_file(self, rows: list[NDArray[np.int64]]) -> None:
        try:
            write_load(np.stack(rows), self.path)
        except (ExpertMapsError, OSError, RuntimeError) as error:
            self.failure = str(error)
            self._meter.write_failed()
            raise
        self.failure = None

    def _fetch(self) -> int:
        """Take what is pending to the host; return how many steps were added until then."""
        count = len(self._pending)
        added = self._fetched = self._fetched + count
        if count:
            steps = torch.stack(self._pending[:count]).cpu().numpy().astype(np.int64)
            self._fresh += [step for step in steps if step.any()]
            del self._pending[:count]
        return added

    def _write(self) -> None:
        while True:
            self._due.wait(MAX_SECONDS)
            self._due.clear()
            try:
                self.flush()
            except (ExpertMapsError, OSError, RuntimeError):
                # Nothing is lost: the steps are tried again with the next write.
                logger.exception("the record %s could not be written", self.path)


def _most_rows(shape: tuple[int, ...]) -> int:
    return max(2, min(MAX_ROWS, MAX_NUMBERS // math.prod(shape)))


def _bounded(rows: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Add up neighbours in the older half until there are few enough rows; recent steps stay single."""
    most = _most_rows(rows[0].shape)
    while len(rows) > most:
        half = max(2, len(rows) // 2)
        older = [rows[i] + rows[i + 1] if i + 1 < half else rows[i] for i in range(0, half, 2)]
        rows = older + rows[half:]
    return rows
