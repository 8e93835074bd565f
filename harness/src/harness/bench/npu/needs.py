# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark imports, checked by the standard library alone: an interpreter with torch_npu is not ours."""

from __future__ import annotations

import importlib.util
import sys

# Module → what to install for it. matplotlib is not among them: without it there is no plot.
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "packaging": "packaging",
    "pydantic": "pydantic",
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
    "rich": "rich",
    "typer": "typer",
    "expert_maps": "expert-maps",
    "vllm_ascend_moe": "vllm-ascend-moe",
}


def missing() -> list[str]:
    """Return what has to be installed before the benchmark can run."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def require() -> None:
    """Leave with exit code 2, naming what is not installed.

    Raises:
        SystemExit: something is not installed.
    """
    if absent := missing():
        text = f"{sys.executable} lacks {', '.join(absent)}; install: pip install {' '.join(absent)}"
        print(text, file=sys.stderr)
        raise SystemExit(2)
