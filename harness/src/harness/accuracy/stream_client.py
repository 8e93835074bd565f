# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's own benchmark client (`vllm bench serve`), in a process that is imported once and runs a stream for each line.

python -m harness.accuracy.stream_client

A line of standard input holds the client's arguments as JSON; a line of standard output what it measured.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from harness.accuracy.guard import end_with_parent
from harness.accuracy.server import ServerError, last_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Client:
    """The client's process, which takes some seconds to import while servers start."""

    def __init__(self, log: Path) -> None:
        """Start it.

        Args:
            log: what it prints.
        """
        self._log = log
        # Made-up prompts of a trace are drawn by Python's hashes.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "VLLM_NO_USAGE_STATS": "1"}
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.accuracy.stream_client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C is for the harness
            )
        self._reader = concurrent.futures.ThreadPoolExecutor(1)

    def run(self, words: Sequence[str], seconds: float) -> dict[str, Any]:
        """Return what it measured of a stream.

        Args:
            words: its arguments.
            seconds: most seconds.

        Raises:
            ServerError: it failed, ended, or took too long.
        """
        try:
            print(json.dumps(words), file=self._process.stdin, flush=True)
            assert self._process.stdout is not None
            line = self._reader.submit(self._process.stdout.readline).result(seconds)
        except concurrent.futures.TimeoutError:
            line = json.dumps({"error": f"did not end within {seconds:g} s"})
        except OSError:
            line = ""
        found: dict[str, Any] = json.loads(line or json.dumps({"error": "ended"}))
        if "completed" not in found:
            msg = f"vLLM's benchmark client failed ({found['error']}){last_lines(self._log)}"
            raise ServerError(msg)
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._reader.shutdown()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what it was still to be asked
                stream.close()


def main() -> None:
    """Run until standard input ends."""
    end_with_parent()
    # Whatever else is printed goes to the log, from now on: vLLM's logger keeps the stream that it finds.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    for line in sys.stdin:
        print(json.dumps(measure(serve, parser, json.loads(line))), file=answers, flush=True)


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
    main()
