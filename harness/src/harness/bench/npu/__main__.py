# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""python -m harness.bench.npu [--short] [--compare] [--baseline FILE]; see `--help`."""

from __future__ import annotations

import os
import sys

from harness.bench.npu import environment, needs


def main() -> None:
    """Check what is installed, then run the command line in an environment that is pinned.

    Threads and the allocator are read when a process starts, so this one starts anew if they are others.
    """
    needs.require()
    if not environment.is_pinned(os.environ):
        command = [sys.executable, "-m", "harness.bench.npu", *sys.argv[1:]]
        os.execve(sys.executable, command, environment.pinned(os.environ))  # noqa: S606 - this program again
    from harness.bench.npu.cli import app

    app()


if __name__ == "__main__":
    main()
