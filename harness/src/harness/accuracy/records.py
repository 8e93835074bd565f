# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The record of an arm: a folder with `summary.json`, `questions.jsonl` and, where measured, `logprobs.jsonl`.

The summary is written last, so a folder without one is a run that broke off. What is read is checked: counts agree
with the questions, a version with its configuration, and only a complete record has a value.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from expert_maps.errors import FormatError
from expert_maps.files import describe, parse_json, read_bytes, write_text
from harness.accuracy.schema import Forced, Question, RecordError, Summary
from harness.record.schema import refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SUMMARY, QUESTIONS, LOGPROBS = "summary.json", "questions.jsonl", "logprobs.jsonl"


@dataclass(frozen=True)
class Record:
    """An arm as it was recorded.

    Attributes:
        folder: where it is.
        summary: what was run.
        questions: in the order of their index.
        logprobs: None where they were not measured.
    """

    folder: Path
    summary: Summary
    questions: tuple[Question, ...]
    logprobs: tuple[Forced, ...] | None


def texts_digest(texts: Iterable[str]) -> str:
    """Return the SHA-256 in hex over texts in their order, as a JSON list."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def write_record(
    folder: Path, summary: Summary, questions: Sequence[Question], logprobs: Sequence[Forced] | None = None
) -> None:
    """Write a record; the summary last, and files of an earlier run never beside those of this one.

    Args:
        folder: is made where it is absent.
        summary: of the run.
        questions: in the order of their index.
        logprobs: None where they were not measured.

    Raises:
        RecordError: they contradict each other.
        FormatError: a file cannot be written.
    """
    _check(Record(folder, summary, tuple(questions), None if logprobs is None else tuple(logprobs)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, LOGPROBS, QUESTIONS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        msg = f"{describe(folder)}: cannot be made ready for a record: {error.strerror}"
        raise FormatError(msg) from error
    write_text(folder / QUESTIONS, _lines(questions))
    if logprobs is not None:
        write_text(folder / LOGPROBS, _lines(logprobs))
    write_text(folder / SUMMARY, json.dumps(summary.model_dump(mode="json"), indent=1) + "\n")


def _lines(rows: Sequence[BaseModel]) -> str:
    return "".join(json.dumps(row.model_dump(mode="json")) + "\n" for row in rows)


def read_record(folder: Path) -> Record:
    """Read and check a record.

    Raises:
        RecordError: see the class.
        FormatError: a file is absent or not JSON.
    """
    if not (folder / SUMMARY).exists():
        reason = f"holds no {SUMMARY}; expected the record of an arm"
        if not folder.is_dir():
            reason = f"no such folder; expected a record with {SUMMARY} and {QUESTIONS}"
        msg = f"{describe(folder)}: {reason}"
        raise RecordError(msg)
    summary = _parse(Summary, _text(folder / SUMMARY), str(folder / SUMMARY))
    questions = _read_lines(Question, folder / QUESTIONS)
    logprobs = _read_lines(Forced, folder / LOGPROBS) if (folder / LOGPROBS).exists() else None
    record = Record(folder, summary, questions, logprobs)
    _check(record)
    return record


_Row = TypeVar("_Row", bound=BaseModel)


def _read_lines(kind: type[_Row], path: Path) -> tuple[_Row, ...]:
    lines = _text(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return tuple(_parse(kind, line, f"{path}, line {number}") for number, line in enumerate(lines, start=1))


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        msg = f"{path}: not UTF-8 text at byte {error.start}; expected JSON"
        raise RecordError(msg) from error


def _parse(kind: type[_Row], text: str, place: str) -> _Row:
    try:
        # No key twice, no NaN, nothing deep; and no number that is too large for one.
        json.dumps(parse_json(text.encode(), place), allow_nan=False)
    except ValueError as error:
        reason = str(error) if isinstance(error, FormatError) else f"{place}: a number is out of range"
        raise RecordError(reason) from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        msg = f"{place}: {refusal(error)}"
        raise RecordError(msg) from error


def _check(record: Record) -> None:
    """Refuse a record whose parts contradict each other.

    Raises:
        RecordError: see the class.
    """
    summary, questions = record.summary, record.questions
    place = record.folder / QUESTIONS
    hashes = _once((question.doc_hash for question in questions), place)
    order = [question.index for question in questions]
    if order != sorted(set(order)):
        msg = f"{place}: indices do not rise from line to line; expected the order of the data"
        raise RecordError(msg)
    correct = sum(question.correct for question in questions)
    if (len(questions), correct) != (summary.num_questions, summary.num_correct):
        msg = (
            f"{place}: {len(questions)} questions, {correct} correct; expected {summary.num_questions} and "
            f"{summary.num_correct}, as {SUMMARY} says"
        )
        raise RecordError(msg)
    if record.logprobs is None:
        return
    place = record.folder / LOGPROBS
    forced = _once((row.doc_hash for row in record.logprobs), place)
    if forced != hashes:
        msg = (
            f"{place}: lacks {len(hashes - forced)} of the {len(hashes)} questions of {QUESTIONS}, and holds "
            f"{len(forced - hashes)} that are not in it; expected the same questions"
        )
        raise RecordError(msg)
    sources = {row.forced_from for row in record.logprobs}
    if len(sources) > 1:
        msg = f"{place}: forced_from has {len(sources)} values; expected one baseline"
        raise RecordError(msg)


def _once(hashes: Iterable[str], place: Path) -> set[str]:
    found: set[str] = set()
    for name in hashes:
        if name in found:
            msg = f"{place}: doc_hash {name!r} stands twice; expected every question once"
            raise RecordError(msg)
        found.add(name)
    return found
