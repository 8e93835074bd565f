# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A process between the harness and a server: however the harness ends, the server and its workers end too.

python -m harness.accuracy.guard SECONDS COMMAND …

The harness holds the other end of this process's standard input. When it closes, be it because the harness says so
or because it was killed, the server gets SIGTERM and, after SECONDS, its process group SIGKILL. Should this process be
killed itself, a second one, which waits for nothing else, kills the server's process group: its workers are no children
of this process, which Linux could end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1
_DONE = b"done"


def guard(seconds: float, command: list[str]) -> int:
    """Run the command until it ends or standard input closes; nothing of its process group outlives this."""
    watch = _watch()
    process = subprocess.Popen(  # noqa: S603 - the harness's own command
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - there is one thread
    )
    os.write(watch, f"{process.pid}\n".encode())
    try:
        while process.poll() is None:
            ready, _, _ = select.select([0], [], [], _POLL_SECONDS)
            if ready and not os.read(0, 1):
                _end(process, seconds)
    finally:
        # Workers may outlive their leader.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.write(watch, _DONE)
    # As shells say it: 128 and the number of the signal.
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _watch() -> int:
    """Fork a process that kills a process group should this one be killed; what to write to it.

    It is told the group's number, and at the end that all is well.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(reading)
        return writing
    try:
        os.setsid()
        os.close(writing)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        told = b""
        while part := os.read(reading, 64):  # until nobody can write any more
            told += part
        group, _, rest = told.partition(b"\n")
        if group and not rest:
            os.killpg(int(group), signal.SIGKILL)
    finally:
        os._exit(0)


def end_with_parent() -> None:
    """Have Linux kill this process when its parent ends: SIGKILL leaves the guard no time for it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.terminate()
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    # What is sent to the terminal's group is for the harness, which then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # An end of file in place of the pipe.
    signal.signal(signal.SIGTERM, lambda *_: os.dup2(os.open(os.devnull, os.O_RDONLY), 0))
    sys.exit(guard(float(sys.argv[1]), sys.argv[2:]))
