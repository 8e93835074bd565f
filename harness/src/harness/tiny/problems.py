# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Seeded grade-school word problems in GSM8K's format.

A problem is a question and an answer; the answer has one calculation a line and ends in `#### N`. The same
seed gives the same problems, to the byte, on every machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.files import describe, read_bytes
from harness.tiny.stories import STORIES, Dice, Sheet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# Stories of one calculation only would be too easy.
MIN_LINES = 2

# As many as GSM8K's test set has.
HELD_OUT_COUNT = 1319
HELD_OUT_SEED = 1
FEWSHOT_COUNT = 200
FEWSHOT_SEED = 2
TRAIN_SEED = 3


@dataclass(frozen=True)
class Problem:
    """A word problem.

    Attributes:
        question: the text.
        answer: one calculation a line, such as `3 * 4 = 12`, and a last line such as `#### 12`.
    """

    question: str
    answer: str

    @property
    def result(self) -> str:
        """What stands after `####`."""
        return self.answer.rpartition("#### ")[2]

    @property
    def prompt(self) -> str:
        """What a model is asked."""
        return f"Question: {self.question}\nAnswer:"


def draw(dice: Dice) -> Problem:
    """Draw one problem."""
    while True:
        sheet = Sheet()
        result = dice.pick(STORIES)(dice, sheet)
        if len(sheet.lines) >= MIN_LINES:
            return Problem(" ".join(sheet.sentences), "\n".join([*sheet.lines, f"#### {result}"]))


def generate(seed: int, exclude: Iterable[str] = ()) -> Iterator[Problem]:
    """Generate problems without end, no question twice.

    Args:
        seed: from 0 on; a negative one draws as its absolute value does.
        exclude: questions that must not occur.
    """
    dice, seen = Dice(seed), set(exclude)
    while True:
        problem = draw(dice)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def held_out() -> list[Problem]:
    """Return the problems that accuracy is measured on."""
    return list(islice(generate(HELD_OUT_SEED), HELD_OUT_COUNT))


def fewshot() -> list[Problem]:
    """Return examples for prompts; none is held out, and none is trained on."""
    questions = [problem.question for problem in held_out()]
    return list(islice(generate(FEWSHOT_SEED, questions), FEWSHOT_COUNT))


def training() -> Iterator[Problem]:
    """Generate problems to train on: neither held out nor examples for prompts."""
    return generate(TRAIN_SEED, [problem.question for problem in [*held_out(), *fewshot()]])


def to_jsonl(problems: Iterable[Problem]) -> str:
    """Return the text of a JSONL file: `question` and `answer`, a problem a line."""
    rows = ({"question": problem.question, "answer": problem.answer} for problem in problems)
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def read_jsonl(path: Path) -> list[Problem]:
    """Read problems from a JSONL file.

    Raises:
        FormatError: unreadable, empty, or a line is no problem; the line is named.
    """
    problems = []
    for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
        except (ValueError, TypeError, KeyError) as error:
            msg = f'{describe(path)}: line {number} is no problem; expected {{"question": …, "answer": …}}'
            raise FormatError(msg) from error
        if not (isinstance(question, str) and isinstance(answer, str) and "#### " in answer):
            msg = f"{describe(path)}: line {number} has no question and answer with a last line `#### N`"
            raise FormatError(msg)
        problems.append(Problem(question, answer))
    if not problems:
        msg = f"{describe(path)}: is empty; expected a problem a line"
        raise FormatError(msg)
    return problems
