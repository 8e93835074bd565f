# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's own benchmark client (`vllm bench serve`), in a process that is imported once and runs a stream for each line.

python -m harness.accuracy.stream_client DESCRIPTOR

A line of standard input holds the client's arguments as JSON; what it measured goes to the descriptor, a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from harness.accuracy.guard import end_with_parent


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
