# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The fuzzer notices what it is there for, and every input that is kept is taken as it should be."""

from __future__ import annotations

import os
import signal
import time
import warnings
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_maps import FormatError
from harness.fuzz import __main__ as program
from harness.fuzz import corpus, documents, hostile, judging
from harness.fuzz.judging import each_kind, judge
from harness.fuzz.mutations import mutate
from harness.fuzz.running import run
from harness.fuzz.targets import TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def raising(error: BaseException) -> Callable[[bytes], object]:
    def read(_: bytes) -> object:
        raise error

    return read


def kind_of(read: Callable[[bytes], object]) -> str | None:
    finding = judge(Target("t", read, ()), b"").finding
    return None if finding is None else finding.kind.split(" ")[0]


def wait(_: bytes) -> None:
    time.sleep(60)


def compute(_: bytes) -> None:
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass


def test_what_must_not_be_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of(lambda _: None) is None
    assert kind_of(raising(FormatError("no map"))) is None
    assert kind_of(raising(ValueError("no map"))) == "ValueError"
    assert kind_of(raising(MemoryError())) == "MemoryError"
    assert kind_of(raising(RecursionError())) == "RecursionError"
    assert kind_of(raising(FormatError("\x1b[2J"))) == "message"
    assert kind_of(raising(FormatError("x" * 10**6))) == "message"
    assert kind_of(lambda _: warnings.warn("invalid value", RuntimeWarning, stacklevel=1)) == "RuntimeWarning"
    monkeypatch.setattr(judging, "MOST_SECONDS", 0.2)
    assert kind_of(compute) == "slow"
    monkeypatch.setattr(judging, "_GIVEN_UP", 0.05)
    assert kind_of(wait) == "no"


def test_what_a_target_dies_of_is_found_with_its_input() -> None:
    (finding,) = run(Target("t", _die_later, (b"seed",)), 50, 0, 60).findings.values()
    assert finding.kind == "died 9"
    assert finding.content
    assert finding.content != b"seed"


def _die_later(content: bytes) -> None:
    if content != b"seed":
        os.kill(os.getpid(), signal.SIGKILL)


def test_memory_is_bounded() -> None:
    def greedy(content: bytes) -> None:
        if content != b"seed":
            np.ones(2**28)

    (finding,) = run(Target("t", greedy, (b"seed",)), 3, 0, 60).findings.values()
    assert "MemoryError" in finding.kind


def test_the_shortest_input_of_a_fault_is_told() -> None:
    def read(content: bytes) -> None:
        if content[:1] == b"a":
            raise KeyError(content)

    target = Target("t", read, ())
    found = [judge(target, content).finding for content in (b"abc", b"a", b"ab")]
    (only,) = each_kind(iter([finding for finding in found if finding])).values()
    assert only.content == b"a"


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_kept_inputs_are_read_or_refused_as_documented(target: Target) -> None:
    judging.prepare(target)
    for content in [*target.seeds, *corpus.read(target.name)]:
        judged = judge(target, content)
        # That one is slow is for the session to say.
        assert judged.finding is None or judged.finding.kind == "slow", judged.finding


def test_there_is_a_corpus_for_every_way_in() -> None:
    assert {path.stem for path in corpus.FOLDER.glob("*.txt")} == {target.name for target in TARGETS}


def test_most_seeds_are_read() -> None:
    read = {
        target.name: sum(judge(target, content).is_read for content in target.seeds) for target in TARGETS
    }
    assert all(count > 0 for name, count in read.items() if name != "yaml"), read


def test_the_same_seed_makes_the_same_inputs() -> None:
    target = next(target for target in TARGETS if target.name == "map-json")
    made = [[mutate(content, Random(5), target.seeds) for content in target.seeds] for _ in range(2)]  # noqa: S311 - no secrets
    assert made[0] == made[1]
    drawn = [list(documents.make(target, 5, 1)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 5


def test_a_reader_that_reads_what_is_hostile_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "_READERS", {"any": lambda _: None})
    monkeypatch.setattr(hostile, "_CONTENTS", {})
    count, findings = hostile.try_all()
    assert count == len(findings) == len(hostile._KINDS)


def test_the_program_ends_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--inputs", "40", "--output", str(tmp_path), "t"]
    monkeypatch.setattr(program, "TARGETS", (Target("t", raising(FormatError("no")), (b"x",)),))
    assert program.main(arguments) == 0
    monkeypatch.setattr(program, "TARGETS", (Target("t", raising(KeyError("no")), (b"x",)),))
    assert program.main(arguments) == 1
    assert "t: KeyError" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 1
    assert program.main(["none"]) == 2
