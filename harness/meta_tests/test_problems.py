# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The word problems that tiny models are trained and measured on."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_maps.errors import FormatError
from harness.tiny import problems, tokenizer
from harness.tiny.problems import Problem, generate
from harness.tiny.stories import Dice, Sheet

if TYPE_CHECKING:
    from pathlib import Path

CALCULATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
# What words stand for, besides the numbers that are written in digits.
WORDS = {"twice": 2, "three times": 3, "four times": 4, "Half": 2}
# Bit for bit the same everywhere: a change here means that committed checkpoints must be trained anew.
HELD_OUT_SHA256 = "4df4dc9ff3158c7452b1c4f4b4e72ea225596fc5730f0e5333178389719a168b"
FEWSHOT_SHA256 = "df0abd1d4f19c11addd090d5f87e9a3e8dbbd43b3815817c789453d22029771f"
TOKENIZER_SHA256 = "0baeed6feee8ea53805ad1049074d1b3153d7c82e1f158d218022caf8bd862d1"


def faults(problem: Problem) -> list[str]:
    """Recompute an answer from its lines and the question alone; return what is wrong with it."""
    *lines, last = problem.answer.split("\n")
    found = []
    known = {int(number) for number in re.findall(r"\d+", problem.question)}
    known |= {value for word, value in WORDS.items() if word in problem.question}
    result = None
    for line in lines:
        match = CALCULATION.fullmatch(line)
        if match is None:
            found.append(f"no calculation: {line!r}")
            continue
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left / max(right, 1)}[match[2]]
        if value != result:
            found.append(f"wrong: {line!r}")
        if not {left, right} <= known:
            found.append(f"out of nowhere: {line!r}")
        known.add(result)
    if last != f"#### {result}":
        found.append(f"last line {last!r}, last result {result}")
    if len(lines) < 2:
        found.append("a single step")
    if not problem.question.endswith("?") or "\n" in problem.question or "Question:" in problem.question:
        found.append(f"no question: {problem.question!r}")
    return found


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@given(st.integers(0, 2**40))
@settings(deadline=None, max_examples=50)
def test_any_seed_gives_right_answers_to_different_questions(seed: int) -> None:
    some = list(islice(generate(seed), 100))
    assert [fault for problem in some for fault in faults(problem)] == []
    assert len({problem.question for problem in some}) == 100
    assert some == list(islice(generate(seed), 100))
    assert some != list(islice(generate(seed + 1), 100))


def test_all_held_out_answers_are_right() -> None:
    assert [fault for problem in problems.held_out() for fault in faults(problem)] == []


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("3 * 4 = 13\n13 + 2 = 15\n#### 15", "wrong: '3 * 4 = 13'"),
        ("3 * 4 = 12\n12 + 2 = 14\n#### 12", "last line '#### 12', last result 14"),
        ("3 * 4 = 12\n12 + 7 = 19\n#### 19", "out of nowhere: '12 + 7 = 19'"),
        ("3 * 4 = 12\nso 12\n#### 12", "no calculation: 'so 12'"),
        ("3 * 4 = 12\n#### 12", "a single step"),
    ],
)
def test_wrong_answers_are_found(answer: str, fault: str) -> None:
    assert faults(Problem("Olga buys 3 mugs at $4 each and 2 lamps. How many?", answer)) == [fault]


def test_nothing_held_out_or_shown_as_an_example_is_trained_on() -> None:
    held = {problem.question for problem in problems.held_out()}
    shown = {problem.question for problem in problems.fewshot()}
    assert (len(held), len(shown)) == (problems.HELD_OUT_COUNT, problems.FEWSHOT_COUNT)
    assert held.isdisjoint(shown)
    trained = [problem.question for problem in islice(problems.training(), 50_000)]
    assert len(set(trained)) == len(trained)
    assert set(trained).isdisjoint(held | shown)


def test_excluded_questions_are_passed_over_and_nothing_else() -> None:
    plain = list(islice(generate(5), 200))
    without = generate(5, [problem.question for problem in plain[::2]])
    assert list(islice(without, 100)) == plain[1::2]


def test_problems_and_tokenizer_are_the_same_everywhere() -> None:
    assert digest(problems.to_jsonl(problems.held_out())) == HELD_OUT_SHA256
    assert digest(problems.to_jsonl(problems.fewshot())) == FEWSHOT_SHA256
    assert digest(tokenizer.tokenizer_json()) == TOKENIZER_SHA256


def test_neither_torch_nor_transformers_is_needed() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = sys.modules['tokenizers'] = None\n"
        "from harness.tiny import problems, tokenizer\n"
        "assert problems.held_out() and tokenizer.tokenizer_json()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_files_are_gsm8ks_and_read_back(tmp_path: Path) -> None:
    some, file = list(islice(generate(7), 20)), tmp_path / "some.jsonl"
    file.write_text(problems.to_jsonl(some), encoding="utf-8")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all(row.keys() == {"question", "answer"} for row in rows)
    assert problems.read_jsonl(file) == some
    assert [problem.result for problem in some] == [row["answer"].split("#### ")[1] for row in rows]


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"question": 1, "answer": "#### 1"}', "\xff"])
def test_other_files_are_refused_by_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(f"{problems.to_jsonl(islice(generate(7), 1))}{line}\n", encoding="utf-8")
    with pytest.raises(FormatError, match="line 2"):
        problems.read_jsonl(file)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").touch()
    with pytest.raises(FormatError, match="is empty"):
        problems.read_jsonl(tmp_path / "some.jsonl")


@given(st.integers(), st.integers(-50, 50), st.integers(0, 50))
def test_dice_stay_between_their_ends_and_reach_both(seed: int, low: int, width: int) -> None:
    dice = Dice(seed)
    seen = {dice.between(low, low + width) for _ in range(40 * (width + 1))}
    assert min(seen) == low
    assert max(seen) == low + width
    first, second = dice.two("abc")
    assert first != second


@pytest.mark.parametrize(("left", "sign", "right"), [(3, "-", 4), (7, "/", 2)])
def test_a_story_cannot_write_what_does_not_come_out_even(left: int, sign: str, right: int) -> None:
    with pytest.raises(AssertionError):
        Sheet().work(left, sign, right)


def test_each_piece_of_a_problem_is_one_token_and_each_digit_another() -> None:
    model = json.loads(tokenizer.tokenizer_json())["model"]
    letters = tokenizer.byte_letters()
    assert len(set(letters)) == 256
    for problem in islice(generate(tokenizer.CORPUS_SEED), 500):
        text = f"{problem.prompt} {problem.answer}"
        pieces = re.findall(tokenizer.PATTERN, text)
        assert "".join(pieces) == text
        assert max(sum(letter.isdigit() for letter in piece) for piece in pieces) == 1
        assert all("".join(letters[byte] for byte in piece.encode()) in model["vocab"] for piece in pieces)


@given(st.text())
def test_every_text_falls_into_pieces_without_loss(text: str) -> None:
    assert "".join(re.findall(tokenizer.PATTERN, text)) == text


def test_the_commands_write_problems_and_refuse_bad_input_in_one_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness.tiny", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    first, second, broken = (tmp_path / name for name in ("first.jsonl", "second.jsonl", "broken.jsonl"))
    broken.write_text("{}\n", encoding="utf-8")
    assert run("problems", "--count", "50", "--seed", "9", "--output", str(first)).returncode == 0
    assert problems.read_jsonl(first) == list(islice(generate(9), 50))
    again = run("problems", "--count", "50", "--seed", "9", "--output", str(second), "--exclude", str(first))
    assert again.returncode == 0
    assert not set(problems.read_jsonl(first)) & set(problems.read_jsonl(second))
    bad: list[tuple[str, ...]] = [
        ("problems", "--output", str(tmp_path / "absent" / "file.jsonl")),
        ("problems", "--output", str(second), "--exclude", str(broken)),
        ("problems", "--output", str(second), "--exclude", str(tmp_path / "absent")),
        ("evaluate", str(tmp_path)),
    ]
    for arguments in bad:
        refused = run(*arguments)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: ")
        assert refused.stderr.count("\n") == 1
    assert run("problems", "--count", "0", "--output", str(second)).returncode == 2
    assert run("problems", "--seed", "-1", "--output", str(second)).returncode == 2
    assert run("train", "llama", "--output", str(tmp_path / "out")).returncode == 2
