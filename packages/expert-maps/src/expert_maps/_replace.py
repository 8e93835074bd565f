# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Replacing a file in one step, so that nothing is left behind, whenever the process is killed.

1. The content goes into a file without a name (Linux: ``O_TMPFILE``) and to the disk. Killed here, nothing is left.
2. It gets its name: at once where there is no such file yet. Else it gets a name beside the file and is renamed over
   it; file systems without nameless files do so from the beginning.
3. The folder goes to the disk, with the new name in it.

A name beside the file outlives its writer only if that is killed between two calls. The writer holds a lock on such a
file as long as it lives, so the next one to write the same file can tell, and removes what nobody holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# Names beside a file: as many writers of the same file as can be between two calls at a time.
_NAMES = 32
# Long enough for any of them to go on, on a busy machine.
_PATIENCE_SECONDS = 30.0
# Those by which a kernel or file system says that it has no nameless files, or that they stay nameless.
_NOT_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_NOT_LINKED = {errno.EOPNOTSUPP, errno.ENOENT, errno.EXDEV, errno.EPERM, errno.ENOSYS}
_CROWDED = "too many processes write this file"


class _NoLinkError(Exception):
    """A nameless file cannot get a name here."""


def replace(target: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Args:
        target: not a link; its folder exists. A file of that name is replaced, and its permissions kept, but none to
            run as another user; a new one gets those that the process gives new files.
        content: all of it.

    Raises:
        OSError: it cannot be written; what was there still is.
    """
    folder = os.open(target.parent, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _remove_all_abandoned(folder, target)
        if not _write_nameless(folder, target, content):
            _write_named(folder, target, content)
    finally:
        os.close(folder)
    _sync_folder(target.parent)


def remove_abandoned(target: Path) -> None:
    """Remove what writers of a file left beside it when they were killed; those that live keep theirs.

    Args:
        target: not a link; its folder exists.

    Raises:
        OSError: the folder cannot be opened.
    """
    folder = os.open(target.parent, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _remove_all_abandoned(folder, target)
    finally:
        os.close(folder)


def _remove_all_abandoned(folder: int, target: Path) -> None:
    for number in range(_NAMES):
        _remove_abandoned(folder, _beside(target, number))


def _write_nameless(folder: int, target: Path, content: bytes) -> bool:
    """Write through a file without a name; or do nothing, where the system has no such files."""
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        file = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno in _NOT_NAMELESS:
            return False
        raise
    try:
        _lock(file)  # before it has a name by which another writer finds it
        _fill(file, target, content)
        if not target.exists() and _give_name(folder, file, target.name):
            return True
        name = next((name for name in _names(folder, target) if _give_name(folder, file, name)), None)
        if name is None:
            raise OSError(errno.EBUSY, _CROWDED)
        _rename(folder, file, name, target)
    except _NoLinkError:
        return False
    finally:
        os.close(file)
    return True


def _write_named(folder: int, target: Path, content: bytes) -> None:
    file, name = _create_named(folder, target)
    try:
        _fill(file, target, content)
    except BaseException:
        _remove(folder, name, file)
        raise
    else:
        _rename(folder, file, name, target)
    finally:
        os.close(file)


def _create_named(folder: int, target: Path) -> tuple[int, str]:
    """Return a new file beside the target, locked, and its name."""
    for name in _names(folder, target):
        try:
            file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=folder)
        except FileExistsError:
            continue
        if _lock(file) is not False and os.fstat(file).st_nlink:
            return file, name
        os.close(file)  # another writer took it for abandoned, between these two calls
    raise OSError(errno.EBUSY, _CROWDED)


def _rename(folder: int, file: int, name: str, target: Path) -> None:
    try:
        os.replace(name, target.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        _remove(folder, name, file)
        raise


def _names(folder: int, target: Path) -> Generator[str]:
    """Yield names beside the target to try, those that are taken again after a while."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        for number in range(_NAMES):
            name = _beside(target, number)
            _remove_abandoned(folder, name)
            yield name
        time.sleep(0.002)


def _beside(target: Path, number: int) -> str:
    # Room for the rest in 255 bytes, however many a character takes.
    return f".{target.name[:40]}.{number}.expert-maps-part"


def _give_name(folder: int, file: int, name: str) -> bool:
    """Name a nameless file; whether there was none of that name.

    Raises:
        _NoLinkError: the system does not let it have one.
    """
    try:
        # The folder is given twice because only then the link to the open file is followed.
        os.link(f"/proc/self/fd/{file}", name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NOT_LINKED:
            raise _NoLinkError from error
        raise
    return True


def _remove_abandoned(folder: int, name: str) -> None:
    """Remove a file beside the target whose writer is gone: one that lives holds a lock on it."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        file = os.open(name, flags, dir_fd=folder)
        try:
            if stat.S_ISREG(os.fstat(file).st_mode) and _lock(file):
                _remove(folder, name, file)
        finally:
            os.close(file)


def _remove(folder: int, name: str, file: int) -> None:
    """Remove a file that this process has locked, unless the name is another's since."""
    with contextlib.suppress(OSError):
        now, known = os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(file)
        if (now.st_dev, now.st_ino) == (known.st_dev, known.st_ino):
            os.unlink(name, dir_fd=folder)


def _lock(file: int) -> bool | None:
    """Lock a file for as long as it is open; False where another process has, None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _fill(file: int, target: Path, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
    with contextlib.suppress(FileNotFoundError):
        os.fchmod(file, target.stat().st_mode & 0o777)
    os.fsync(file)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return  # a folder that may be written but not read
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EROFS}:  # file systems without such a call
            raise
    finally:
        os.close(handle)
