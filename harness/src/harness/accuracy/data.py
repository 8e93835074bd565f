# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Local files of questions, checked before a server is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field

from harness.accuracy.arms import Strict, read_rows
from harness.accuracy.config import ConfigError

if TYPE_CHECKING:
    from harness.accuracy.config import ModelConfig

# What stands before the number in an answer of GSM8K.
_FINAL = "####"


class _Question(Strict):
    """A line; more than this may stand in it."""

    model_config = ConfigDict(extra="ignore")

    question: Annotated[str, Field(pattern=r"\S")]
    answer: Annotated[str, Field(pattern=r"\S")]


def check_data(split: str, path: Path, num_fewshot: int) -> None:
    """Check a file of questions.

    Args:
        split: ``train``, of which examples are taken, or ``test``.
        path: JSONL.
        num_fewshot: examples before a question.

    Raises:
        ConfigError: a line is no question, a question stands twice, or there are too few.
        FormatError: the file cannot be read.
    """
    seen: dict[_Question, int] = {}
    for number, row in read_rows(path, _Question, "a JSON object with question and answer, both text"):
        if _FINAL not in row.answer:
            msg = f"{path}, line {number}: the answer ends with {row.answer[-80:]!r}; expected '{_FINAL} NUMBER' in it"
            raise ConfigError(msg)
        first = seen.setdefault(row, number)
        if split == "test" and first != number:
            msg = f"{path}, line {number}: the same question as in line {first}; expected each once"
            raise ConfigError(msg)
    needed = num_fewshot if split == "train" else 1
    if len(seen) < needed:
        msg = f"{path}: {len(seen)} different questions; expected at least {needed}"
        raise ConfigError(msg)


def find_data(config: ModelConfig, model: str, folder: Path | None) -> dict[str, Path] | None:
    """Return the absolute paths of the splits; None for the hub's data.

    Raises:
        ConfigError: a file is absent.
    """
    if folder is not None:
        paths = {"train": folder / "train.jsonl", "test": folder / "test.jsonl"}
    elif config.task.data is not None:
        written = {"train": config.task.data.train, "test": config.task.data.test}
        paths = {split: Path(text.replace("{model}", model)) for split, text in written.items()}
    else:
        return None
    for split, path in paths.items():
        if not path.is_file():
            msg = f"the {split} data {path} is no file; expected JSONL with question and answer"
            raise ConfigError(msg)
    return {split: path.absolute() for split, path in paths.items()}
