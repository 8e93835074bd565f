# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs that are kept: a text file for each target, in base64, a line each."""

from __future__ import annotations

import base64
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "fuzz" / "corpus"


def read(target: str) -> list[bytes]:
    """Return a target's inputs; none where it has no file."""
    path = FOLDER / f"{target}.txt"
    if not path.exists():
        return []
    return [base64.b64decode(line) for line in path.read_text(encoding="ascii").split()]


def write(target: str, inputs: set[bytes]) -> None:
    """Keep a target's inputs, shortest first."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    ordered = sorted(inputs, key=lambda content: (len(content), content))
    text = "".join(base64.b64encode(content).decode() + "\n" for content in ordered)
    (FOLDER / f"{target}.txt").write_text(text, encoding="ascii")
