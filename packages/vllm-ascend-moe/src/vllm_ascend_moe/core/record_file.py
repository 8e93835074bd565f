# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The file of a record: one server writes it, nothing that another wrote is lost, and a bad place is refused at the start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import ExpertMapsError, read_load
from expert_maps.files import printable, remove_abandoned
from expert_maps.formats.loads import write_load
from vllm_ascend_moe._log import logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 2**63 - 1
"""The highest count that a record holds; more stays there."""

# Of a lock file: a process id and a host's name.
_LONGEST_HOLDER = 300


class RecordError(ExpertMapsError):
    """A record cannot be continued or written; the message says what to change."""


class RecordFile:
    """A record's file, locked for as long as this lives or until it is closed.

    Attributes:
        path: as it was given.
    """

    def __init__(self, path: str, shape: tuple[int, int]) -> None:
        """Lock the place, and remove what a killed writer left there.

        Args:
            path: ends in ``.npz`` or ``.npy``; its folder exists.
            shape: layers and logical experts of a row.

        Raises:
            RecordError: the folder is missing or nothing can be written there, it is no file, or another server writes it.
        """
        self.path = path
        self._shape = shape
        try:
            self._target = Path(path).resolve()
            folder = self._target.parent
            if not folder.is_dir():
                msg = f"record_path is {path}; there is no folder {folder}, create it first"
                raise RecordError(msg)
            if self._target.exists() and not self._target.is_file():
                msg = f"record_path is {path}, which is not a regular file; expected a file, or a new name"
                raise RecordError(msg)
            self._release = weakref.finalize(self, _unlock, *_lock(path, self._target))
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            reason = getattr(error, "strerror", None) or error
            msg = f"record_path is {path}, where nothing can be written: {reason}; name another record_path"
            raise RecordError(msg) from error
        remove_abandoned(path)
        # As it was when it was last read or written; None where there was none.
        self._known: tuple[int, ...] | None = None

    def close(self) -> None:
        """Let another server write it."""
        self._release()

    def read(self) -> list[NDArray[np.int64]]:
        """Return the rows that are there, int64 [L, E] each.

        Raises:
            RecordError: they are of another model, or no whole tokens.
            ExpertMapsError: the file is no load.
        """
        self._known = self._identity()
        if self._known is None or not self._target.stat().st_size:
            return []
        counts = read_load(self.path).counts
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
        return list(_whole(counts))

    def write(self, rows: list[NDArray[np.int64]]) -> None:
        """Replace the file, whole or not at all.

        Raises:
            RecordError: it was changed by somebody else since it was read or written.
            FormatError: it cannot be written.
        """
        found = self._identity()
        # What was moved away is written again: nothing is overwritten.
        if found is not None and found != self._known:
            msg = f"{self.path} was changed by another program; expected that only this server writes it: move it away"
            raise RecordError(msg)
        write_load(np.stack(rows), self.path)
        self._known = self._identity()

    def _identity(self) -> tuple[int, ...] | None:
        """Return what changes with the file's content."""
        try:
            found = self._target.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _whole(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return counts as integers; those beyond the highest become it, where a cast would make them negative."""
    too_high = counts >= float(MOST)
    if too_high.any():
        logger.warning("%d counts of the record are above %d, and are taken for that", too_high.sum(), MOST)
    return np.where(too_high, MOST, np.where(too_high, 0, counts).astype(np.int64))


def _lock(path: str, target: Path) -> tuple[int, Path]:
    """Lock a file beside the record: the record itself is another file after each write.

    Returns:
        the open lock file and its path, to be removed before it is closed.

    Raises:
        RecordError: another process holds it, which is named.
        OSError: it cannot be made.
    """
    name = target.parent / f".{target.name[:200]}.lock"
    while True:
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            _take(file, name, path)
            if _is_at(file, name):
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                _held.add(file)
                return file, name
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder removed it between these two calls


def _take(file: int, name: Path, path: str) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        msg = f"record_path is {path}; {name} is not a regular file: remove it"
        raise RecordError(msg)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = printable(os.pread(file, _LONGEST_HOLDER, 0).decode(errors="replace"), _LONGEST_HOLDER)
        msg = (
            f"record_path is {path}, which another server writes: {holder or 'one that is just starting'}; "
            "expected one server a record: name another record_path"
        )
        raise RecordError(msg) from error
    except OSError as error:
        # Some network file systems have none.
        logger.warning(
            "no lock on the record %s (%s): see that only one server writes it", path, error.strerror
        )


def _is_at(file: int, name: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(name, follow_symlinks=False))  # noqa: PTH116 - beside its other half
    except FileNotFoundError:
        return False


# Lock files of this process.
_held: set[int] = set()


def _unlock(file: int, name: Path) -> None:
    if file not in _held:  # of the process that this one was forked from
        return
    _held.discard(file)
    with contextlib.suppress(OSError):
        if _is_at(file, name):
            name.unlink()
    os.close(file)


def _forget_in_child() -> None:
    """Close what a fork inherits: it would hold the lock for longer than the server lives."""
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
