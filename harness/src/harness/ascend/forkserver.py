# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A fork server: a process that has imported vLLM once, and each engine is a fork of it.

Importing takes an engine longer than all the rest. What is read while importing (the release, the chip, which plugins
there are) is another server's: each has an environment of its own.

python -m harness.ascend.forkserver SOCKET [MODULE …]
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import socketserver
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from harness.accuracy.guard import end_with_parent
from harness.accuracy.server import last_lines, start
from harness.shared_start import share

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.1
# What an engine imports, in vLLM's own order.
MODULES = ("vllm", "vllm.entrypoints.llm")


class ForkServerError(RuntimeError):
    """It did not start, or ended; the message shows what it said last."""


class _Fork(socketserver.StreamRequestHandler):
    """In a fork: lead a session, say its id, and be what ``python -m MODULE ARGUMENTS`` would be."""

    server: socketserver.UnixStreamServer

    def handle(self) -> None:
        """Run what the first line asks for."""
        asked = json.loads(self.rfile.readline())
        self.server.socket.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        end_with_parent()
        _redirect(asked["log"])
        os.environ.update(asked["environment"])
        self.wfile.write(f"{os.getpid()}\n".encode())
        # A process that this one leaves behind would hold it open.
        self.connection.close()
        module, *arguments = asked["words"]
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Exception:  # noqa: BLE001 - as an interpreter's main program does
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _redirect(log: str) -> None:
    for path, flags, numbers in ((os.devnull, os.O_RDONLY, (0,)), (log, os.O_WRONLY | os.O_APPEND, (1, 2))):
        opened = os.open(path, flags)
        for number in numbers:
            os.dup2(opened, number)
        os.close(opened)


class _Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Forks for each connection; its forks' sessions end with it."""

    max_children = 64
    block_on_close = False

    def end(self) -> None:
        """Kill every fork's session."""
        for child in self.active_children or ():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)


def main(path: str, *modules: str) -> None:
    """Listen, import, and fork for each connection until SIGTERM."""
    with _Server(path, _Fork) as server:

        def stop(*_: object) -> None:
            server.end()
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        for module in modules:
            importlib.import_module(module)
        share(())
        server.serve_forever(_POLL_SECONDS)


class ForkServer:
    """A fork server with one environment, and its log.

    Args:
        log: a file for what it prints while importing; written anew.
        environment: variables beside this process's own.
        modules: to import; None for what an engine imports.
    """

    def __init__(
        self, log: Path, environment: Mapping[str, str], modules: Sequence[str] | None = None
    ) -> None:
        """Start it; it imports while it is asked for its first fork."""
        self._log = log
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fork-"))
        # The path of a socket may have no more than a hundred characters.
        self._path = str(Path(folder) / "socket")
        words = [sys.executable, "-m", "harness.ascend.forkserver", self._path]
        words += MODULES if modules is None else modules
        self._guard: subprocess.Popen[bytes] = self._stack.enter_context(
            start(words, log, environment, _STOP_SECONDS)
        )

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._guard.poll() is None

    def close(self) -> None:
        """End it, with every session that it has forked."""
        self._stack.close()

    def run(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str], seconds: float
    ) -> tuple[int, bool]:
        """Run a module in a fork to its end, or end it and its processes after the time limit.

        Args:
            words: the module and its arguments.
            log: for what it prints; written anew.
            environment: variables beside the server's.
            seconds: most seconds, with those that the server still imports for.

        Returns:
            The session's id, and whether the time limit had to end it.

        Raises:
            ForkServerError: see the class.
        """
        deadline = time.monotonic() + seconds
        log.write_bytes(b"")
        asked = {"words": list(words), "log": str(log), "environment": dict(environment)}
        process = self._fork(json.dumps(asked).encode() + b"\n", deadline)
        is_late = False
        try:
            # Of a process that has ended already there is nothing to wait for.
            with contextlib.suppress(ProcessLookupError):
                ended = os.pidfd_open(process)
                try:
                    left = max(0.0, deadline - time.monotonic())
                    is_late = not select.select([ended], [], [], left)[0]
                finally:
                    os.close(ended)
        finally:
            # Workers may outlive their leader.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        return process, is_late

    def _fork(self, line: bytes, deadline: float) -> int:
        """Return the id of a fork that runs what the line asks for."""
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                self._connect(connection, deadline)
                connection.sendall(line)
                connection.settimeout(max(_POLL_SECONDS, deadline - time.monotonic()))
                with connection.makefile("rb") as stream:
                    return int(stream.readline())
            except (OSError, ValueError) as error:
                msg = f"the fork server did not fork ({error}){last_lines(self._log)}"
                raise ForkServerError(msg) from error

    def _connect(self, connection: socket.socket, deadline: float) -> None:
        while True:
            try:
                return connection.connect(self._path)
            except OSError:
                if not self.is_alive or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)


class ForkServers:
    """Fork servers by their environments: as many as are kept at a time, and all ended at the end of a `with` block.

    Args:
        folder: for their logs.
        keep: servers at a time; the one that was asked longest ago makes room, once nothing of it runs.
    """

    def __init__(self, folder: Path, keep: int = 4) -> None:
        """Start none yet."""
        self._folder, self._keep = folder, keep
        self._lock = threading.Lock()
        # By environment, in the order in which they were asked; with how many runs of each there are.
        self._servers: dict[str, ForkServer] = {}
        self._runs: dict[str, int] = {}
        self._started = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    @contextlib.contextmanager
    def server(self, environment: Mapping[str, str]) -> Iterator[ForkServer]:
        """Hand out the server with an environment for the time of a `with` block, started if it is not there."""
        key = json.dumps(sorted(environment.items()))
        with self._lock:
            found = self._servers.pop(key, None)
            if found is None:
                self._make_room()
                self._started += 1
                self._folder.mkdir(parents=True, exist_ok=True)
                found = ForkServer(self._folder / f"fork-server-{self._started}.txt", environment)
            self._servers[key] = found
            self._runs[key] = self._runs.get(key, 0) + 1
        try:
            yield found
        finally:
            with self._lock:
                self._runs[key] -= 1

    def _make_room(self) -> None:
        for key in [key for key in self._servers if not self._runs[key]]:
            if len(self._servers) < self._keep:
                break
            self._servers.pop(key).close()


if __name__ == "__main__":
    main(*sys.argv[1:])
