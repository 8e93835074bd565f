# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Asking: retried, bounded, in order, and never again what was answered; against a server that fails as told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_server import Fake, answer_to

from harness.accuracy.asking import _read, cut
from harness.accuracy.client import AskError, Job, Limits, _retry_after, ask_all
from harness.accuracy.journal import Journal, JournalError, key_of
from harness.accuracy.logprobs import _continuation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from harness.accuracy.client import Post

QUICK = Limits(concurrency=8, attempts=5, seconds=20, first_wait_seconds=0.01)
PROMPTS = [f"question {number}" for number in range(40)]


def job(prompt: str, context: str = "here") -> Job:
    async def run(post: Post) -> dict[str, Any]:
        answer = await post("/v1/completions", {"prompt": prompt})
        return {"text": answer["choices"][0]["text"]}

    return Job(key_of(context=context, prompt=prompt), run)


def ask(fake: Fake, path: Path, prompts: list[str], limits: Limits = QUICK, **kinds: Any) -> list[str]:  # noqa: ANN401 - what ask_all takes
    journal = Journal(path)
    try:
        jobs = [job(prompt) for prompt in prompts]
        return [one["text"] for one in ask_all(fake.url, jobs, journal, limits, **kinds)]
    finally:
        journal.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_answers_come_in_the_order_of_the_questions(fake: Fake, path: Path) -> None:
    seen: list[int] = []
    assert ask(fake, path, PROMPTS, on_answer=lambda: seen.append(1)) == [answer_to(one) for one in PROMPTS]
    assert len(seen) == len(PROMPTS)
    assert set(fake.answered.values()) == {1}


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_as_many_are_in_flight_as_allowed_and_no_more(fake: Fake, path: Path, concurrency: int) -> None:
    together = threading.Barrier(concurrency)

    def fault(_prompt: str, _before: int) -> None:
        # No request is answered before there are so many.
        together.wait(20)
        time.sleep(0.02)

    fake.fault = fault
    ask(fake, path, PROMPTS[:24], Limits(concurrency=concurrency))
    assert fake.most == concurrency


@pytest.mark.parametrize("fault", [408, 429, 500, 502, 503, 504, "drop", "cut", "break"])
def test_what_may_pass_is_tried_again(fake: Fake, path: Path, fault: object) -> None:
    fake.fault = lambda _prompt, before: fault if before < 2 else None
    assert ask(fake, path, PROMPTS[:6]) == [answer_to(one) for one in PROMPTS[:6]]
    assert set(fake.asked.values()) == {3}


def test_a_slow_answer_is_given_up_and_asked_for_again(fake: Fake, path: Path) -> None:
    fake.delay = 1.0

    def fault(_prompt: str, _before: int) -> None:
        fake.delay = 0.0

    fake.fault = fault
    assert ask(fake, path, PROMPTS[:1], Limits(seconds=0.3, first_wait_seconds=1.0)) == [
        answer_to(PROMPTS[0])
    ]
    assert fake.asked[PROMPTS[0]] == 2


def test_retry_after_is_waited_for(fake: Fake, path: Path) -> None:
    fake.retry_after = "1"
    fake.fault = lambda _prompt, before: 429 if before == 0 else None
    start = time.monotonic()
    ask(fake, path, PROMPTS[:1])
    # The client's own first wait would be a hundredth of a second.
    assert time.monotonic() - start >= 1


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), usegmt=True)
    past = format_datetime(datetime.now(timezone.utc) - timedelta(days=1), usegmt=True)
    assert 25 < (_retry_after(soon) or 0) <= 31
    assert _retry_after(past) == 0
    assert _retry_after("-5") == 0
    assert _retry_after("soon") is None
    assert _retry_after(None) is None


def test_it_gives_up_and_says_why_and_keeps_what_it_has(fake: Fake, path: Path) -> None:
    bad = PROMPTS[7]
    fake.fault = lambda prompt, _before: 503 if prompt == bad else None
    with pytest.raises(AskError, match=r"answered 503: .*as the test asked.*in 5 attempts.*kept"):
        ask(fake, path, PROMPTS[:8], Limits(concurrency=1, attempts=5, first_wait_seconds=0.01))
    assert fake.asked[bad] == 5
    fake.fault = lambda _prompt, _before: None
    assert ask(fake, path, PROMPTS[:8]) == [answer_to(one) for one in PROMPTS[:8]]
    assert all(fake.answered[one] == 1 for one in PROMPTS[:8])


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_will_not_pass_is_asked_once(fake: Fake, path: Path, status: int) -> None:
    fake.fault = lambda _prompt, _before: status
    with pytest.raises(AskError, match=f"answered {status}: .*as the test asked"):
        ask(fake, path, PROMPTS[:1])
    assert fake.asked[PROMPTS[0]] == 1


def test_a_dead_server_is_not_waited_for(path: Path) -> None:
    class DeadError(Exception):
        pass

    def require_alive() -> None:
        if calls:
            raise DeadError
        calls.append(1)

    calls: list[int] = []
    with Fake() as gone:
        pass
    with pytest.raises(DeadError):
        ask(gone, path, PROMPTS[:1], require_alive=require_alive)


def test_nothing_is_asked_again_that_was_answered(fake: Fake, path: Path) -> None:
    first = ask(fake, path, PROMPTS[:10])
    assert ask(fake, path, PROMPTS[:20])[:10] == first
    assert set(fake.asked.values()) == {1}
    assert len(fake.asked) == 20


def test_another_configuration_is_asked_anew(fake: Fake, path: Path) -> None:
    ask(fake, path, PROMPTS[:3])
    journal = Journal(path)
    ask_all(fake.url, [job(one, context="elsewhere") for one in PROMPTS[:3]], journal, QUICK)
    journal.close()
    assert set(fake.asked.values()) == {2}


@pytest.mark.parametrize("part", ["kind", "context", "index", "body", "digest"])
def test_a_key_depends_on_every_part(part: str) -> None:
    parts: dict[str, object] = {"kind": "a", "context": "b", "index": 1, "body": {"x": [1]}, "digest": None}
    assert key_of(**parts) == key_of(**dict(reversed(parts.items())))
    assert key_of(**parts) != key_of(**{**parts, part: "other"})


def test_a_torn_last_line_is_dropped_and_nothing_else(fake: Fake, path: Path) -> None:
    texts = ask(fake, path, PROMPTS[:5])
    whole = path.read_bytes()
    for missing in (1, 10, len(whole.splitlines()[-1])):
        fake.asked.clear()
        path.write_bytes(whole[:-missing])
        assert ask(fake, path, PROMPTS[:5]) == texts
        assert sum(fake.asked.values()) == 1
        assert len(path.read_bytes()) == len(whole)


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", "nonsense", '{"key": "x"}', "null", '{"key": [1], "answer": {}}']
)
def test_a_damaged_line_in_the_middle_is_passed_over(fake: Fake, path: Path, line: str) -> None:
    texts = ask(fake, path, PROMPTS[:4])
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n", encoding="utf-8")
    assert ask(fake, path, PROMPTS[:4]) == texts
    assert sum(fake.asked.values()) == 5


def test_a_journal_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"cannot be written: No such file"):
        Journal(tmp_path / "absent" / "journal.jsonl")


def test_a_full_disk_is_said(path: Path) -> None:
    journal = Journal(path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file)
    os.close(full)
    with pytest.raises(JournalError, match="No space left"):
        journal.add("key", {"text": "x"})
    journal.close()


# The whole of it in a process of its own, which is killed.

KILLED = """
import sys, json
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_accuracy_client import PROMPTS, job
from harness.accuracy.client import Limits, ask_all
from harness.accuracy.journal import Journal
answers = ask_all(sys.argv[2], [job(one) for one in PROMPTS], Journal(Path(sys.argv[3])), Limits(concurrency=4))
print(json.dumps([one["text"] for one in answers]))
"""


def run_killed(fake: Fake, path: Path, stop: Callable[[], bool]) -> str:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), fake.url, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not stop():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        return process.communicate(timeout=60)[0]


def journaled(path: Path) -> set[str]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {json.loads(line)["key"] for line in lines}


def test_killed_at_any_moment_it_goes_on_where_it_was(fake: Fake, path: Path) -> None:
    fake.delay = 0.05
    key = {key_of(context="here", prompt=one): one for one in PROMPTS}
    for least in (5, 17, 30):
        run_killed(fake, path, lambda least=least: len(journaled(path)) >= least)  # type: ignore[misc] # a loop's value
        known = {key[one] for one in journaled(path)}
        assert least <= len(known) < len(PROMPTS)
        asked = {prompt: fake.asked[prompt] for prompt in known}
        found = run_killed(fake, path, lambda known=known: len(journaled(path)) > len(known))  # type: ignore[misc] # as above
        assert not found
        # What was in the journal was not asked again.
        assert asked == {prompt: fake.asked[prompt] for prompt in known}
    found = run_killed(fake, path, lambda: False)
    assert json.loads(found) == [answer_to(one) for one in PROMPTS]
    # Only what was in flight at one of the six kills was asked more than once.
    assert sum(fake.asked.values()) <= len(PROMPTS) + 6 * 4


def test_steps_of_a_job_count_as_one(fake: Fake, path: Path) -> None:
    """A job that asks twice holds one place, so that no more are in flight."""
    fake.delay = 0.02

    async def run(post: Post) -> Mapping[str, Any]:
        first = await post("/tokenize", {"prompt": "abc"})
        await asyncio.sleep(0)
        second = await post("/v1/completions", {"prompt": first["tokens"], "echo": True})
        return {"logprobs": second["choices"][0]["logprobs"]["token_logprobs"]}

    jobs = [Job(str(number), run) for number in range(12)]  # type: ignore[arg-type] # a mapping will do
    journal = Journal(path)
    found = ask_all(fake.url, jobs, journal, Limits(concurrency=2))
    journal.close()
    assert fake.most <= 2
    assert all(one["logprobs"] == found[0]["logprobs"] for one in found)


def test_what_ends_an_answer_cuts_it_though_a_server_takes_four() -> None:
    stops = ["a", "b", "c", "d", "END", "LAST"]
    answer = {"text": "one END two LAST", "finish_reason": "length"}
    assert cut(answer, stops) == {"text": "one ", "finish_reason": "stop"}
    assert cut({"text": "one", "finish_reason": "length"}, ["x", ""]) == {
        "text": "one",
        "finish_reason": "length",
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([None, -1.0, math.nan, -2.0], "log-probability 2 is nan; expected a number"),
        ([None, -1.0, None, -2.0], "log-probability 2 is None"),
        ([None, -1.0, -math.inf, -2.0], "log-probability 2 is -inf"),
        ([None, -1.0, True, -2.0], "log-probability 2 is True"),
        ([None, -1.0, 3.5, -2.0], "log-probability 2 is 3.5"),
        ([None, -1.0, -2.0], "3 log-probabilities; expected 4"),
        (None, "None as log-probabilities; expected 4"),
        ({}, "{} as log-probabilities; expected 4"),
    ],
)
def test_log_probabilities_that_are_none_are_refused(values: object, said: str) -> None:
    with pytest.raises(AskError, match=re.escape(said)):
        _continuation({"choices": [{"logprobs": {"token_logprobs": values}}]}, 2, 1)


def test_answers_in_half_characters_are_kept(tmp_path: Path) -> None:
    found = _read("/x", {"choices": [{"text": "a \ud83d b", "finish_reason": "stop"}]})
    assert found["text"] == "a ? b"
    with pytest.raises(AskError, match="finish_reason 5; expected a string"):
        _read("/x", {"choices": [{"text": "a", "finish_reason": 5}]})
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        journal.add("key", {"text": "\ud83d"})
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        assert journal.get("key") == {"text": "\ud83d"}
        journal.clear()
        assert len(journal) == 0
