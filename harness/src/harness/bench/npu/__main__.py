# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m harness.bench.npu [--short] [--compare] [--record]`; an interpreter that has torch_npu is not ours, so look first."""

from __future__ import annotations

import importlib.util
import sys

# Module → what to install for it. matplotlib is not among them: without it there is no plot.
NEEDED = {
    "torch": "torch",
    "jinja2": "jinja2",
    "pydantic": "pydantic",
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
    "rich": "rich",
    "typer": "typer",
    "expert_maps": "expert-maps",
    "vllm_ascend_moe": "vllm-ascend-moe",
}


def main() -> None:
    """Name what is not installed and leave with exit code 2, or run the command line.

    Raises:
        SystemExit: see above.
    """
    if absent := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        text = f"{sys.executable} lacks {', '.join(absent)}; install: pip install {' '.join(absent)}"
        print(text, file=sys.stderr)
        raise SystemExit(2)
    from harness.bench.npu.cli import app

    app()


if __name__ == "__main__":
    main()
