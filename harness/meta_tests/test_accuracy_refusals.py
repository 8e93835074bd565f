# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Records that cannot be judged: broken files, and arms that were asked something else, are refused in a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from made_records import CONFIGURATION, Arm, compare, eplb, make

from expert_maps import ExpertMapsError
from harness.accuracy.pairs import pair
from harness.accuracy.records import LOGPROBS, QUESTIONS, SUMMARY, read_record
from harness.accuracy.schema import RecordError, task_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Break: TypeAlias = "Callable[[Path], object]"


# --- files that are broken ---


def lines_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def rewrite(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def setting(name: str, number: int, **fields: Any) -> Break:  # noqa: ANN401 - JSON
    """Return what sets fields of a line."""

    def breaks(folder: Path) -> None:
        rows = lines_of(folder, name)
        rows[number].update(fields)
        rewrite(folder, name, rows)

    return breaks


def cutting(name: str) -> Break:
    """Return what cuts a file in the middle of its last line."""

    def breaks(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-9])

    return breaks


def without(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content)


def without_last(name: str) -> Break:
    return lambda folder: rewrite(folder, name, lines_of(folder, name)[:-1])


BROKEN: dict[str, tuple[Break, str]] = {
    "cut summary": (cutting(SUMMARY), "not valid JSON"),
    "empty summary": (holding(SUMMARY, b""), "the file is empty"),
    "summary is a list": (holding(SUMMARY, b"[]"), "summary.json: Input should be an object"),
    "nested without end": (holding(SUMMARY, b"[" * 100_000), "nested 100000 deep"),
    "not a number": (holding(SUMMARY, b'{"value": NaN}'), "NaN is not a JSON number"),
    "a key twice": (holding(SUMMARY, b'{"arm": "a", "arm": "b"}'), "key 'arm' stands twice"),
    "no questions": (without(QUESTIONS), "questions.jsonl: no such file"),
    "cut questions": (cutting(QUESTIONS), "questions.jsonl, line 400: not valid JSON"),
    "bytes": (holding(QUESTIONS, b"\xff\n"), "not UTF-8 text at byte 0"),
    "a line too few": (without_last(QUESTIONS), "399 questions, 399 correct; expected 400 and 400"),
    "a question twice": (setting(QUESTIONS, 9, doc_hash="doc8"), "doc_hash 'doc8' stands twice"),
    "another order": (setting(QUESTIONS, 9, index=2), "indices do not rise"),
    "correct is 2": (setting(QUESTIONS, 9, correct=2), "line 10: correct is 2: Input should be less than"),
    "correct is text": (setting(QUESTIONS, 9, correct="1"), "line 10: correct is '1': "),
    "wrong for right": (setting(QUESTIONS, 9, correct=0), "399 correct; expected 400 and 400"),
    "cut log-probabilities": (cutting(LOGPROBS), "logprobs.jsonl, line 400: not valid JSON"),
    "a log-probability of −∞": (setting(LOGPROBS, 9, logprobs=[float("-inf")]), "line 10: "),
    "log-probabilities twice": (setting(LOGPROBS, 9, doc_hash="doc8"), "doc_hash 'doc8' stands twice"),
    "log-probabilities too few": (
        without_last(LOGPROBS),
        "logprobs.jsonl: lacks 1 of the 400 questions of questions.jsonl, and holds 0 that are not in it; expected",
    ),
    "log-probabilities of another question": (
        setting(LOGPROBS, 9, doc_hash="x"),
        "logprobs.jsonl: lacks 1 of the 400 questions of questions.jsonl, and holds 1 that are not in it; expected",
    ),
    "log-probabilities of two texts": (setting(LOGPROBS, 9, forced_from="x"), "forced_from has 2 values"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    breaks, reason = BROKEN[name]
    folder = make(tmp_path, Arm()).folder
    breaks(folder)
    with pytest.raises(ExpertMapsError) as caught:
        read_record(folder)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


# --- bad input on the command line ---


def remake(arm: Arm) -> Break:
    """Return what puts another arm in the folder."""
    return lambda folder: make(folder.parent, arm)


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def removed(folder: Path) -> None:
    emptied(folder)
    folder.rmdir()


def asking_another(folder: Path) -> None:
    for name in (QUESTIONS, LOGPROBS):
        setting(name, 5, doc_hash="x")(folder)


OTHER = CONFIGURATION | {"max_tokens": 65}
UNFINISHED = {"status": "incomplete", "reason": "the run was interrupted", "value": None}
REFUSED: dict[str, tuple[Break, str]] = {
    "no folder": (removed, "static: no such folder"),
    "no record": (emptied, "holds no summary.json; expected the record of an arm"),
    "ragged JSON": (cutting(SUMMARY), "summary.json: not valid JSON"),
    "ragged questions": (cutting(QUESTIONS), "questions.jsonl, line 400: not valid JSON"),
    "another task": (
        remake(eplb(changes={"task.configuration": OTHER, "task.version": task_version(OTHER)})),
        f"task.version is '{task_version(OTHER)}'; expected '{task_version(CONFIGURATION)}'",
    ),
    "fewer questions": (remake(eplb(questions=399)), "1 questions of"),
    "other questions": (
        asking_another,
        "are missing and 1 are not in it; expected the same questions",
    ),
    "another prompt": (
        setting(QUESTIONS, 5, prompt_hash="x"),
        "prompt_hash of question 5 is 'x'; expected 'prompt5'",
    ),
    "another dtype": (
        remake(eplb(changes={"dtype": "bfloat16"})),
        "dtype is 'bfloat16'; expected 'float32'",
    ),
    "an incomplete record": (
        remake(eplb(changes=UNFINISHED)),
        "status is incomplete (the run was interrupted); expected a complete record",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_ends_with_2_and_a_line(tmp_path: Path, name: str) -> None:
    breaks, reason = REFUSED[name]
    folders = [make(tmp_path, arm).folder for arm in (Arm(), eplb())]
    assert pair(*map(read_record, folders)).outcomes.losses == 0
    breaks(folders[1])
    done = compare(*folders)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_options_out_of_range_end_with_2_and_a_line(tmp_path: Path) -> None:
    folders = [make(tmp_path, arm).folder for arm in (Arm(), eplb())]
    for option, value in (("--margin", "0"), ("--identical", "1.5")):
        done = compare(*folders, option, value)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert "expected" in line
        assert f"{option.removeprefix('--')} is {value}" in line


@pytest.mark.parametrize("which", [0, 1])
def test_only_complete_records_are_paired(tmp_path: Path, which: int) -> None:
    changes: list[dict[str, Any]] = [{}, {}]
    changes[which] = UNFINISHED
    baseline, arm = make(tmp_path, Arm(changes=changes[0])), make(tmp_path, eplb(changes=changes[1]))
    with pytest.raises(RecordError, match="status is incomplete"):
        pair(baseline, arm)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "another"}, "model is 'another'; expected 'made-up'"),
        ({"task.dataset": "another"}, "task.dataset is 'another'; expected 'words'"),
        ({"task.num_fewshot": 5}, "task.num_fewshot is 5; expected 0"),
    ],
)
def test_unlike_records_are_not_paired(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    baseline, arm = make(tmp_path, Arm()), make(tmp_path, eplb(changes=changes))
    with pytest.raises(RecordError, match=reason):
        pair(baseline, arm)


def test_another_target_is_refused(tmp_path: Path) -> None:
    baseline, arm = make(tmp_path, Arm()), make(tmp_path, eplb())
    setting(QUESTIONS, 5, target="x")(arm.folder)
    with pytest.raises(RecordError, match="target of question 5 is 'x'; expected '5'"):
        pair(baseline, read_record(arm.folder))
