# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Local files of questions, checked before a server is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError
from expert_maps.files import parse_json, read_bytes
from harness.accuracy.config import ConfigError

if TYPE_CHECKING:
    from harness.accuracy.config import ModelConfig

_SHOWN = 80
# What stands before the number in an answer of GSM8K.
_FINAL = "####"


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
    try:
        lines = read_bytes(path).decode().split("\n")  # other separators may stand in a text
    except UnicodeDecodeError as error:
        msg = f"{path}: not UTF-8 text at byte {error.start}"
        raise ConfigError(msg) from error
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = parse_json(line.encode(), str(path))
            fields = row["question"], row["answer"]
        except (ExpertMapsError, LookupError, TypeError):
            fields = None, None
        if not all(isinstance(text, str) and text.strip() for text in fields):
            msg = f"{path}, line {number}: {line[:_SHOWN]!r}; expected a JSON object with question and answer, both text"
            raise ConfigError(msg)
        if _FINAL not in fields[1]:
            msg = f"{path}, line {number}: the answer ends with {fields[1][-_SHOWN:]!r}; expected '{_FINAL} NUMBER' in it"
            raise ConfigError(msg)
        first = seen.setdefault(fields, number)
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
