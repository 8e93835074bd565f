# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The pinned requirement files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.sessions.environments import CORE

if TYPE_CHECKING:
    import nox

_TORCH_NEEDS = (
    "filelock",
    "fsspec",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "setuptools",
    "sympy",
    "typing-extensions",
)


def write_pinned_files(session: nox.Session) -> None:
    """Resolve each group of pyproject.toml anew, and pin what was found by hash; the session's words go to uv."""
    session.install("--require-hashes", "-r", "requirements/tools.txt")
    common = ["--quiet", "--universal", "--generate-hashes", "--no-emit-index-url", "--no-annotate"]
    lowest = ["--resolution", "lowest-direct", f"{CORE}/pyproject.toml"]
    # What serves runs on one Python; torch is left out, and what only torch's CUDA build needs with it.
    never = Path(session.create_tmp()) / "overrides.txt"
    never.write_text("torch; sys_platform == 'never'\n", encoding="utf-8")
    without_torch = ["--no-emit-package", "torch", "--overrides", str(never)]
    # What torch needs of Python is pinned in the files of those who have it.
    without_needs = [word for name in _TORCH_NEEDS for word in ("--no-emit-package", name)]
    for name, python, options in (
        ("nox", "3.10", []),
        ("run", "3.10", []),
        ("dev", "3.10", []),
        ("pythons", "3.10", ["--constraints", "requirements/dev.txt"]),
        ("minimums", "3.10", lowest),
        ("tools", "3.10", []),
        ("packages", "3.10", ["--constraints", "requirements/tools.txt"]),
        ("docs", "3.10", ["--constraints", "requirements/run.txt"]),
        ("zig", "3.10", []),
        ("fuzz", "3.10", []),
        ("vllm", "3.11", without_torch),
        ("torch", "3.10", without_needs),
    ):
        command = ["uv", "pip", "compile", *common, "--python-version", python, *options, "--group", name]
        command += ["--output-file", f"requirements/{name}.txt"]
        session.run(*command, *session.posargs, env={"UV_CUSTOM_COMPILE_COMMAND": "nox -s lock"})
