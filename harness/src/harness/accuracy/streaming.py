# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The process of `harness.accuracy.stream_client`, as the harness sees it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from harness.accuracy.server import ServerError, last_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_STOP_SECONDS = 10.0
_ENDED = "ended"


class Client:
    """The client's process, which takes some seconds to import while servers start."""

    def __init__(self, log: Path) -> None:
        """Start it.

        Args:
            log: what it prints.
        """
        self._log = log
        self._answers, write = os.pipe()
        # Made-up prompts of a trace are drawn by Python's hashes.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "VLLM_NO_USAGE_STATS": "1"}
        try:
            with log.open("wb") as stream:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                    [sys.executable, "-m", "harness.accuracy.stream_client", str(write)],
                    stdin=subprocess.PIPE,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write,),
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the harness
                )
        finally:
            os.close(write)

    def run(self, words: Sequence[str], seconds: float) -> dict[str, Any]:
        """Return what it measured of a stream.

        Args:
            words: its arguments.
            seconds: most seconds.

        Raises:
            ServerError: it failed, ended, or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure(_ENDED) from error
        received, deadline = b"", time.monotonic() + seconds
        while not received.endswith(b"\n"):
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                what = f"did not end within {seconds:g} s"
                raise self._failure(what)
            part = os.read(self._answers, 2**16)
            if not part:
                raise self._failure(_ENDED)
            received += part
        found: dict[str, Any] = json.loads(received)
        if "completed" not in found:
            what = f"failed ({found['error']})"
            raise self._failure(what)
        return found

    def _failure(self, what: str) -> ServerError:
        return ServerError(f"vLLM's benchmark client {what}{last_lines(self._log)}")

    def close(self) -> None:
        """End it."""
        os.close(self._answers)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
