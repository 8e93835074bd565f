# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Answers on disk as they come, so that a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError
from expert_maps.files import parse_json, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class JournalError(ExpertMapsError):
    """A journal cannot be written."""


def key_of(**parts: object) -> str:
    """Return the name of an answer: the SHA-256 of everything that it depends on."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """Answers by key, in a file that is only ever appended to: a line of JSON each.

    An answer is found again by its key alone, so what was answered to another question, by another model or under another
    placement is never taken. A line that a kill cut short, the last one, is dropped; a damaged line in the middle is
    an answer that is asked for again.
    """

    def __init__(self, path: Path) -> None:
        """Open a journal, or begin one.

        Raises:
            JournalError: see the class.
        """
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            msg = f"{path}: cannot be written: {error.strerror}"
            raise JournalError(msg) from error
        self._answers: dict[str, dict[str, Any]] = {}
        self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        for line in content[:whole].splitlines():
            try:
                entry = parse_json(line, printable(str(self.path)))
            except ExpertMapsError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("answer"), dict):
                self._answers[str(entry.get("key"))] = entry["answer"]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def clear(self) -> None:
        """Put all answers aside, in a file of their own, and begin another journal."""
        os.close(self._file)
        put_aside(self.path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._answers.clear()

    def __len__(self) -> int:
        """Return how many answers there are."""
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return an answer; None if there is none."""
        return self._answers.get(key)

    def add(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer: in the file before this returns.

        Raises:
            JournalError: the disk is full, or such.
        """
        line = json.dumps({"key": key, "answer": answer}).encode() + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            msg = f"{self.path}: cannot be written: {error.strerror}"
            raise JournalError(msg) from error
        if written != len(line):
            msg = f"{self.path}: only {written} of {len(line)} bytes could be written; expected room on the disk"
            raise JournalError(msg)
        self._answers[key] = dict(answer)


def put_aside(path: Path) -> None:
    """Rename a journal to one of a number; an absent or empty one stays."""
    if not path.exists() or path.stat().st_size == 0:
        return
    number = 1
    while (target := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(target)
