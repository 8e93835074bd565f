# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a server's expert load: a row a step, written whole or not at all."""

from __future__ import annotations

import contextlib
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import ExpertMapsError
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.core.meter import Meter
from vllm_ascend_moe.core.record_file import RecordError, RecordFile
from vllm_ascend_moe.core.record_rows import Unmeasured, add_tensors, bounded, rows_left

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A server that is idle writes too, so that being killed costs little.
MAX_SECONDS = 5.0
# Steps that wait for a write that does not end, beyond those of an interval; more are added up where they are.
MAX_WAITING = 1024
# Longest wait of a server that stops for a write that does not end.
MAX_CLOSING_SECONDS = 10.0


class LoadRecorder:
    """Collects the load of steps and writes it to a file that ``expert-maps plan`` reads.

    A file that is there already is continued: a server that was restarted loses nothing. While serving, the
    file is written by a thread of its own, because compressing takes longer than a step: after some steps, and
    after some seconds. Where it cannot be written, serving goes on: the steps are kept, older ones added up, and
    it is tried again.

    It can be stopped and started again, by `vllm_ascend_moe.report` and over HTTP; steps in between are not recorded.

    Attributes:
        path: the file.
        interval: steps after which it is written.
        is_on: whether steps are recorded.
        failure: why the last write failed; None where it did not.
        failed_writes: how often it could not be written.
        merged_rows: rows that were added to a neighbour while it could not be written; no token is lost by it.
        dropped_steps: steps that were left out because they hold a negative count.
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
        """Read what is there, and keep other servers from writing it until `close`.

        Args:
            path: ends in ``.npz`` or ``.npy``; its folder exists.
            num_layers: L.
            num_experts: E, logical.
            interval: steps after which it is written.
            is_on: whether recording begins at once.
            meter: counts rows, and measures the load of each write; None for none.

        Raises:
            RecordError: the file is of another model, another server writes it, the folder is missing, or nothing can
                be written there.
            ExpertMapsError: the file is no load.
        """
        self.path, self.interval, self.is_on = path, interval, is_on
        self.failure: str | None = None
        self.failed_writes = self.merged_rows = self.dropped_steps = 0
        self._meter = meter or Meter()
        self._meter.record_is(on=is_on)
        # Steps that were added; that were taken to the host; that are in the file, or had no token.
        self._added = self._fetched = self._written = 0
        # Of those added, how many are in a neighbour that waits on the device.
        self._hidden = 0
        # Counts how often the record was begun anew, so that a write under way does not bring rows back.
        self._epoch = 0
        self._file = RecordFile(path, (num_layers, num_experts))
        self._shape = (num_layers, num_experts)
        try:
            self._rows = self._file.read()
        except BaseException:
            self._file.close()
            raise
        self._is_written, self._in_file = True, len(self._rows)  # the rows, as they are
        self._unmeasured = Unmeasured()
        self._is_failing = self._is_closed = False
        self._pending: list[torch.Tensor] = []  # of single steps, where they were counted
        self._fresh: list[NDArray[np.int64]] = []  # those of them that had a token
        self._fetching = threading.Lock()
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._writer: threading.Thread | None = None

    @property
    def num_rows(self) -> int:
        """Rows that the file will have after the next write."""
        with self._fetching:
            self._fetch()
            return rows_left(len(self._rows) + len(self._fresh), self._shape)

    def add(self, load: torch.Tensor) -> None:
        """Add a step, and write from time to time; nothing waits for the device.

        Args:
            load: integers [L, E], on any device; kept there until the next write, so it must be the
                recorder's own. A step without a token is none; after `close` none is taken.
        """
        if self._is_closed or not self.is_on:
            return
        self._pending.append(load)
        self._added += 1
        self._meter.unwritten(max(0, self._added - self._written))
        if self._writer is None:
            # It must not keep alive what nobody else has any more.
            known = (weakref.ref(self), self._due)
            self._writer = threading.Thread(target=_write, args=known, name="expert-load-record", daemon=True)
            self._writer.start()
        if len(self._pending) >= self.interval:
            self._due.set()
            if len(self._pending) > self.interval + MAX_WAITING:
                self._halve_pending()

    def flush(self) -> None:
        """Write what was collected, and return when it is written.

        Raises:
            FormatError: the file cannot be written; what was collected is kept.
            RecordError: it was changed by another program, and is left alone; what was collected is kept.
        """
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Write what was collected, and let another server write the file.

        Raises:
            FormatError: the file cannot be written.
            RecordError: it was changed by another program, or an earlier write does not end.
        """
        self._is_closed = True
        self._due.set()
        if not self._lock.acquire(timeout=MAX_CLOSING_SECONDS):
            msg = (
                f"{self.path}: a write has not ended in {MAX_CLOSING_SECONDS:g} s; steps since then are lost"
            )
            raise RecordError(msg)
        try:
            self._flush()
        finally:
            self._file.close()
            self._lock.release()

    def _flush(self) -> None:
        with self._fetching:
            taken, epoch = self._fetch(), self._epoch
            if self._fresh:
                self._take_fresh()
            rows, is_written = self._rows, self._is_written
        if not is_written:
            self._write_file(rows)
        with self._fetching:
            if epoch == self._epoch:
                self._written, self._is_written, self._in_file = taken, True, len(rows)
        self._meter.unwritten(max(0, self._added - self._written))

    def _take_fresh(self) -> None:
        """Put the steps behind the rows; of these older ones are added up where there are too many."""
        rows = [*self._rows, *self._fresh]
        self._unmeasured.add(self._fresh)
        self._rows, self._fresh, self._is_written = self._within_bounds(rows), [], False

    # What is asked for while a server serves.

    def start(self, *, fresh: bool = False) -> None:
        """Record the steps that follow.

        Args:
            fresh: whether the rows until now are dropped: the file holds them until its next write. Else it is continued.
        """
        if fresh:
            with self._fetching:
                self._pending.clear()
                self._fresh, self._rows, self._hidden = [], [], 0
                self._is_written, self._in_file = True, 0
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
            "rows": self._in_file,
            "unwritten_steps": max(0, self._added - self._written),
            "added_steps": self._added,
            "written_steps": self._written,
            "failure": self.failure,
        }

    def _write_file(self, rows: list[NDArray[np.int64]]) -> None:
        try:
            self._file.write(rows)
        except (ExpertMapsError, OSError, RuntimeError) as error:
            self.failure = str(error)
            self.failed_writes += 1
            self._meter.write_failed()
            if not self._is_failing:
                again = "steps are kept, older ones added up, and it is tried again"
                logger.warning("the record %s could not be written: %s; %s", self.path, error, again)
            self._is_failing = True
            raise
        if self._is_failing:
            words = "the record %s is written again; %d rows were added to neighbours so far"
            logger.info(words, self.path, self.merged_rows)
        self.failure, self._is_failing = None, False
        self._unmeasured.tell(self._meter)

    def _fetch(self) -> int:
        """Take what is pending to the host; return how many steps were added until then."""
        count = len(self._pending)
        added = self._fetched = self._fetched + count + self._hidden
        self._hidden = 0
        if not count:
            return added
        steps = torch.stack(self._pending[:count]).cpu().numpy().astype(np.int64)
        del self._pending[:count]
        bad = (steps < 0).any(axis=(1, 2))
        if bad.any():
            if not self.dropped_steps:
                logger.warning("a step with %d tokens for an expert is left out of the record", steps.min())
            self.dropped_steps += int(bad.sum())
        self._fresh = self._within_bounds([*self._fresh, *(step for step in steps[~bad] if step.any())])
        return added

    def _halve_pending(self) -> None:
        """Add up neighbours that wait for the device's turn, on the device."""
        # A fetch takes them all anyway, and waits for the device, which serving must not.
        if not self._fetching.acquire(blocking=False):
            return
        try:
            steps = self._pending[: len(self._pending) // 2 * 2]
            pairs = [add_tensors(steps[i], steps[i + 1]) for i in range(0, len(steps), 2)]
            self._pending[: len(steps)] = pairs
            self._hidden += len(pairs)
            self.merged_rows += len(pairs)
        finally:
            self._fetching.release()

    def _within_bounds(self, rows: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Add up older rows until there are few enough; a record that is written is bounded too, which is no fault."""
        fewer = bounded(rows)
        if self._is_failing:
            self.merged_rows += len(rows) - len(fewer)
        return fewer


def _write(known: weakref.ref[LoadRecorder], due: threading.Event) -> None:
    """Write for as long as somebody has the recorder."""
    while True:
        due.wait(MAX_SECONDS)
        due.clear()
        recorder = known()
        if recorder is None or recorder._is_closed:  # noqa: SLF001 - its own
            return
        # A failure has been said and counted; the steps are tried again with the next write.
        with contextlib.suppress(ExpertMapsError, OSError, RuntimeError):
            recorder.flush()
        del recorder


__all__ = ["LoadRecorder", "RecordError"]
