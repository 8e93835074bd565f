# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a server's expert load: a row a step, written whole or not at all."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from expert_maps import ExpertMapsError, read_load
from expert_maps.formats.loads import write_load
from vllm_ascend_moe._log import logger

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

    Attributes:
        path: the file.
        interval: steps after which it is written.
    """

    def __init__(self, path: str, num_layers: int, num_experts: int, interval: int = 100) -> None:
        """Read what is there.

        Args:
            path: ends in ``.npz`` or ``.npy``; its folder exists.
            num_layers: L.
            num_experts: E, logical.
            interval: steps after which it is written.

        Raises:
            RecordError: the file is of another model, or the folder is missing.
            ExpertMapsError: the file is no load.
        """
        self.path = path
        self.interval = interval
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
        self._pending.append(load)
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
                self._fetch()
                fresh = list(self._fresh)
            if not fresh:
                return
            rows = _bounded([*self._rows, *fresh])
            write_load(np.stack(rows), self.path)
            with self._fetching:
                self._rows = rows
                del self._fresh[: len(fresh)]

    def _fetch(self) -> None:
        count = len(self._pending)
        if count:
            steps = torch.stack(self._pending[:count]).cpu().numpy().astype(np.int64)
            self._fresh += [step for step in steps if step.any()]
            del self._pending[:count]

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
