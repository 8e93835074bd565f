# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is put to a model: questions that come with it, or a user's own file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from expert_maps import ExpertMapsError

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 16
_MAX_PROMPTS = 4096
_MAX_BYTES = 64 * 2**20
# Of the embedded models: questions that they were not trained on.
_HELD_OUT = "held_out.jsonl"
# For a model that brings none.
_PLAIN = (
    "A shop sells 12 boxes of 8 pens each. How many pens is that?",
    "Write one sentence about the sea.",
    "The capital of France is",
    "def fibonacci(n):",
    "List three prime numbers larger than 20.",
    "Die Hauptstadt von Japan heißt",
    "请用一句话介绍长城。",
    "Once upon a time there was a",
    "Translate to French: good morning.",
    "x + 5 = 12, so x =",
    "The opposite of hot is",
    "Name a planet with rings.",
    "SELECT name FROM users WHERE",
    "Water boils at a temperature of",
    "Explain in one line what a hash table is.",
    "1, 1, 2, 3, 5, 8,",
)


class PromptsError(ExpertMapsError):
    """A file of prompts cannot be used; the message says why."""


def prompts_for(model: Path) -> list[str]:
    """Return prompts for a model: its own held-out questions, or plain sentences."""
    own = model / _HELD_OUT
    if not own.is_file():
        return list(_PLAIN)
    with own.open(encoding="utf-8") as lines:
        return [str(json.loads(line)["question"]) for line, _ in zip(lines, range(COUNT), strict=False)]


def read_prompts(path: Path) -> list[str]:
    """Read prompts: a text file with one in each line, or JSON lines with ``prompt`` or ``question``.

    Raises:
        PromptsError: see the class.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            msg = f"{path} has {path.stat().st_size} bytes; expected {_MAX_BYTES} at most"
            raise PromptsError(msg)
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise PromptsError(msg) from error
    if not 0 < len(lines) <= _MAX_PROMPTS:
        msg = f"{path} has {len(lines)} prompts; expected 1 to {_MAX_PROMPTS}, one in each line"
        raise PromptsError(msg)
    return (
        [_from_json(path, number, line) for number, line in enumerate(lines, 1)]
        if path.suffix == ".jsonl"
        else lines
    )


def _from_json(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"{path}, line {number}: no JSON ({error})"
        raise PromptsError(msg) from error
    found = value.get("prompt", value.get("question")) if isinstance(value, dict) else value
    if not isinstance(found, str) or not found:
        msg = f"{path}, line {number}: prompt is {found!r:.80}; expected a text under prompt or question"
        raise PromptsError(msg)
    return found
