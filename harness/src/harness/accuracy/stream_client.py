# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's own benchmark client (`vllm bench serve`), in a process that is imported once and runs a stream for each line.

python -m harness.accuracy.stream_client DESCRIPTOR

A line of standard input holds the client's arguments as JSON; what it measured goes to the descriptor, a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from harness.accuracy.guard import end_with_parent
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


def main(descriptor: int) -> None:
    """Run until standard input ends."""
    end_with_parent()
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    with os.fdopen(descriptor, "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            found = measure(serve, parser, json.loads(line))
            answers.write(json.dumps(found) + "\n")
            answers.flush()


def measure(client: Any, parser: Any, words: list[str]) -> dict[str, Any]:  # noqa: ANN401 - vLLM's
    """Return the numbers of a stream, and the first error of a request; of a client that failed, its error alone."""
    try:
        found = client.main(parser.parse_args(words))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the harness says it
        return {"error": f"{type(error).__name__}: {error}"}
    errors = [text for text in found.get("errors", ()) if text]
    numbers = {name: value for name, value in found.items() if isinstance(value, (int, float))}
    # A traceback says it in its last line.
    return {**numbers, "error": errors[0].strip().splitlines()[-1] if errors else None}


if __name__ == "__main__":
    main(int(sys.argv[1]))
