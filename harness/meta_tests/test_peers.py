# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The session that runs peers' tests fails on every surprise: feed it tests that pass, fail, vanish and hang."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from harness.contract.fetching import ContractError
from harness.peers import __main__ as main
from harness.peers import ascend_swaps, vllm_swaps
from harness.peers.expected import COUNTS, EXPECTED
from harness.peers.judge import Expected, Verdict, judge
from harness.peers.page import render
from harness.peers.run import Outcome, RunError, execute
from harness.peers.sources import Source, unpack_tests
from harness.peers.suites import RUNS, Run, Suite, Swap

if TYPE_CHECKING:
    from pathlib import Path

TESTS = """
import unittest
import pytest
from tests.theirs import double, helper

@pytest.mark.parametrize("value", [1, 2])
def test_double(value):
    assert double(value) == 2 * value

def test_triple():
    assert double(1) == 3

def test_helper():
    assert helper() == "theirs"

def test_elsewhere():
    pytest.skip("no such device")

@pytest.fixture
def crumbling():
    yield
    raise RuntimeError("at its end")

def test_end(crumbling):
    assert double(1) > 1

class TestOld(unittest.TestCase):
    def setUp(self):
        self.found = double(2)

    def test_it(self):
        self.assertEqual(self.found, 4)

    def test_parts(self):
        for value in (1, 2):
            with self.subTest(value=value):
                self.assertEqual(double(value), 2)
"""
THEIRS = """
def double(value):
    raise AssertionError("theirs was called")

def helper():
    return "theirs"
"""
# Loaded beside the plugin: it knows no run but those of its own table.
MADE = """
from harness.peers import plugin
from harness.peers.calls import hit
from harness.peers.sources import Source
from harness.peers.suites import Run, Suite, Swap

def double(theirs, variant):
    def ours(value):
        hit()
        return value * {"right": 2, "wrong": 3}[variant]
    return ours

plugin.RUNS = (
    Run("made", Source("made", "1", ""), (
        Suite("numbers", ("tests/test_made.py",), "", (Swap("double", "made_run:double"),), ("right", "wrong")),
    )),
)
"""


def made_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tests: str = TESTS) -> Run:
    """Return a run over a source distribution of its own, and teach pytest of it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in (
            ("made-1/tests/__init__.py", ""),
            ("made-1/tests/test_made.py", tests),
            ("made-1/tests/theirs.py", THEIRS),
            ("made-1/tests/test_other.py", "raise AssertionError"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    place = tmp_path / "downloads" / "made-1"
    place.mkdir(parents=True)
    (place / "made-1.tar.gz").write_bytes(content.getvalue())
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "made_run.py").write_text(MADE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugins"))
    monkeypatch.setenv("PYTEST_PLUGINS", "made_run")
    source = Source("made", "1", hashlib.sha256(content.getvalue()).hexdigest())
    swaps = (Swap("double", "made_run:double"),)
    suite = Suite("numbers", ("tests/test_made.py",), "", swaps, ("right", "wrong"))
    return Run("made", source, (suite,), helpers=("tests/theirs.py",), timeout_s=60)


# Running


def test_ours_stands_in_place_of_theirs_for_each_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path, monkeypatch)
    found = {(each.variant, each.test): each for each in execute(run, tmp_path)}
    told = {key: (each.outcome, each.calls) for key, each in found.items()}
    assert told == {
        ("right", "test_double[1]"): ("passed", 1),
        ("right", "test_double[2]"): ("passed", 1),
        ("wrong", "test_double[1]"): ("failed", 1),
        ("wrong", "test_double[2]"): ("failed", 1),
        ("right", "test_triple"): ("failed", 1),
        ("wrong", "test_triple"): ("passed", 1),
        ("right", "test_helper"): ("passed", 0),
        ("wrong", "test_helper"): ("passed", 0),
        ("right", "test_elsewhere"): ("skipped", 0),
        ("wrong", "test_elsewhere"): ("skipped", 0),
        # unittest knows no parameters: its classes are run with the first variant.
        ("right", "TestOld.test_it"): ("passed", 1),
        # A part that fails and an end that fails are failures of the test.
        ("right", "TestOld.test_parts"): ("failed", 3),
        ("right", "test_end"): ("failed", 1),
        ("wrong", "test_end"): ("failed", 1),
    }
    assert found["wrong", "test_double[1]"].message == "assert 3 == (2 * 1) + where 3 = double(1)"
    assert "no such device" in found["right", "test_elsewhere"].message
    # Only what was asked for is unpacked, and nothing of it is changed.
    assert (tmp_path / "made-1" / "tests" / "test_made.py").read_text(encoding="utf-8") == TESTS
    assert not (tmp_path / "made-1" / "tests" / "test_other.py").exists()


@pytest.mark.parametrize(
    ("tests", "seconds", "message"),
    [
        ("import time\ndef test_it():\n    time.sleep(60)\n", 3, "made: took more than 3 s"),
        ("import no_such_module\n", 60, r"made: pytest ended with 2: .*no_such_module"),
        ("", 60, r"made: pytest ended with 5: .*no tests ran"),
    ],
)
def test_a_run_without_a_verdict_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tests: str, seconds: int, message: str
) -> None:
    run = replace(made_run(tmp_path, monkeypatch, tests), timeout_s=seconds)
    with pytest.raises(RunError, match=message):
        execute(run, tmp_path)


def test_a_source_without_a_file_that_is_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path, monkeypatch)
    with pytest.raises(ContractError, match=r"made-1.tar.gz has no tests/gone.py; nothing was run"):
        unpack_tests(run.source, ("tests/test_made.py", "tests/gone.py"), tmp_path)
    # What was unpacked for another wish is not taken for this one.
    place = unpack_tests(run.source, ("tests/test_made.py",), tmp_path)
    assert unpack_tests(run.source, ("tests/theirs.py",), tmp_path) == place
    assert not (place / "tests" / "test_made.py").exists()


# Judging

SUITE = Suite("numbers", ("tests/test_made.py",), "ours")
RUN = Run("made", Source("made", "1", ""), (SUITE, replace(SUITE, name="device", emulated=True)))
OUTCOMES = [
    Outcome("numbers", "", "test_a", "passed", 2, ""),
    Outcome("numbers", "", "test_b[1]", "failed", 1, "AssertionError: other"),
    Outcome("numbers", "", "test_c", "skipped", 0, "Skipped: no GPU"),
    Outcome("numbers", "", "test_d", "passed", 0, ""),
    Outcome("device", "", "test_e", "passed", 0, ""),
]
TABLE = (
    Expected("made", "numbers", "test_b*", "differs", "it is ours", "other"),
    Expected("made", "numbers", "test_c", "cannot run", "a device", "no GPU"),
    Expected("made", "numbers", "test_d", "not ours", "nothing of ours in it"),
    Expected("another", "numbers", "test_z", "differs", "of another run"),
)
NUMBERS = {("made", "numbers", ""): 4, ("made", "device", ""): 1}


def problems(
    outcomes: list[Outcome] | None = None, table: tuple[Expected, ...] = TABLE, **numbers: int
) -> list[str]:
    counts = {**NUMBERS, **{("made", suite, ""): number for suite, number in numbers.items()}}
    verdicts = judge(RUN, OUTCOMES if outcomes is None else outcomes, table, counts)
    return [problem for verdict in verdicts for problem in verdict.problems]


def test_what_is_expected_is_no_problem() -> None:
    assert not problems()
    numbers, device = judge(RUN, OUTCOMES, TABLE, NUMBERS)
    assert (numbers.count, numbers.passed, dict(numbers.others)) == (
        4,
        1,
        {"differs": 1, "cannot run": 1, "not ours": 1},
    )
    assert (device.count, device.passed) == (1, 1)


def changed(index: int, **changes: Any) -> list[Outcome]:  # noqa: ANN401 - as an outcome has them
    return [replace(each, **changes) if i == index else each for i, each in enumerate(OUTCOMES)]


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        (
            changed(0, outcome="failed", message="no"),
            r"numbers: test_a failed \(no\); expected a pass with ours",
        ),
        (changed(0, outcome="skipped", message="no"), r"test_a skipped \(no\); expected a pass with ours"),
        (changed(0, calls=0), "test_a passed, with 0 calls of ours; expected a pass with ours"),
        (
            changed(1, outcome="passed"),
            "test_b.1. passed, with 1 calls of ours; expected that it differs: it is ours",
        ),
        (changed(1, message="crash"), "test_b.1. failed with 'crash'; expected 'other' in it"),
        (changed(2, outcome="passed"), "test_c passed, with 0 calls of ours; expected that it cannot run"),
        (changed(2, message="no TPU"), "test_c skipped with 'no TPU'; expected 'no GPU' in it"),
        (changed(3, calls=1), "test_d passed, with 1 calls of ours; expected that it not ours"),
        (changed(4, outcome="failed", message="no"), r"device: test_e failed \(no\); expected a pass"),
    ],
)
def test_every_surprise_is_a_problem(outcomes: list[Outcome], message: str) -> None:
    (found,) = problems(outcomes)
    assert re.search(message, found), found


def test_tests_that_vanish_or_appear_are_problems() -> None:
    assert problems(OUTCOMES[1:]) == ["made, numbers: 3 tests; expected 4"]
    assert problems(OUTCOMES[:1] + OUTCOMES[2:]) == [
        "made, numbers: 3 tests; expected 4",
        "made, numbers: there is no test test_b*; expected one that differs",
    ]
    more = [*OUTCOMES, Outcome("numbers", "", "test_f", "passed", 1, "")]
    assert problems(more) == ["made, numbers: 5 tests; expected 4"]
    assert problems([]) == [
        "made, numbers: 0 tests; expected 4",
        *(
            f"made, numbers: there is no test {each.tests}; expected one that {each.kind}"
            for each in TABLE[:3]
        ),
        "made, device: 0 tests; expected 1",
    ]


def test_an_expectation_holds_for_its_variants_only() -> None:
    run = replace(RUN, suites=(replace(SUITE, variants=("one", "two")),))
    outcomes = [Outcome("numbers", variant, "test_a", "failed", 1, "no") for variant in ("one", "two")]
    counts = {("made", "numbers", variant): 1 for variant in ("one", "two")}
    table = (Expected("made", "numbers", "test_a", "differs", "why", variants=("one",)),)
    one, two = judge(run, outcomes, table, counts)
    assert not one.problems
    assert two.problems == ["made, numbers (two): test_a failed (no); expected a pass with ours"]


# The tables and the page


def test_every_suite_has_a_count_and_every_expectation_a_suite() -> None:
    suites = {(run.name, suite.name): suite for run in RUNS for suite in run.suites}
    assert set(COUNTS) == {(*name, variant) for name, suite in suites.items() for variant in suite.variants}
    assert all(count > 0 for count in COUNTS.values())
    for each in EXPECTED:
        suite = suites[each.run, each.suite]
        assert set(each.variants) <= set(suite.variants)
        assert each.reason
        # A failure or a skip without a mark could be any.
        assert bool(each.shows) == (each.kind != "not ours")


def test_the_session_ends_with_1_on_a_surprise_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "RUNS", (RUN,))
    monkeypatch.setattr(main, "EXPECTED", TABLE)
    monkeypatch.setattr(main, "COUNTS", NUMBERS)
    came: list[list[Outcome]] = [OUTCOMES]
    monkeypatch.setattr(main, "execute", lambda *_: came[0])
    page = tmp_path / "page.md"

    def code(*, write: bool = False) -> int:
        try:
            main.main(folder=tmp_path, only=None, page=page, write_page=write, jobs=1)
        except typer.Exit as ended:
            return ended.exit_code
        return 0

    assert code() == 1
    assert f"FAILED {page} is stale" in capsys.readouterr().err
    assert code(write=True) == 0
    assert code() == 0
    text = page.read_text(encoding="utf-8")
    assert text == render([(RUN, judge(RUN, OUTCOMES, TABLE, NUMBERS))], TABLE)
    assert "| made | numbers | ours | 4 | 1 | 1 | 1 | 1 |" in text
    assert "| made | numbers | `test_b*` | differs | it is ours |" in text
    came[0] = OUTCOMES[1:]
    assert code(write=True) == 1
    assert "FAILED made, numbers: 3 tests; expected 4" in capsys.readouterr().err
    # What is not as expected is not written down as if it were.
    assert page.read_text(encoding="utf-8") == text

    def fail(*_: object) -> list[Outcome]:
        msg = "made: took more than 1 s"
        raise RunError(msg)

    monkeypatch.setattr(main, "execute", fail)
    assert code() == 1
    assert "FAILED made: took more than 1 s" in capsys.readouterr().err


def test_a_verdict_counts_what_surprised() -> None:
    assert Verdict("numbers", "", passed=2, problems=["one"]).count == 3


# What stands in place of theirs


def test_the_planner_as_a_policy_of_vllm_ascend_takes_slots_and_steps() -> None:
    torch = pytest.importorskip("torch")
    current = torch.tensor([[[0, 1, 2], [2, 3, 4]], [[0, 0, 1], [2, 3, 4]]])  # an expert twice on a rank
    load = torch.tensor([[[9, 1, 1], [1, 1, 1]], [[4, 4, 1], [1, 1, 1]]])
    planner = ascend_swaps.policy_factory(None, "").generate_policy(1)  # type: ignore[attr-defined]
    changes, order, placed = planner.rebalance_experts(current, load)
    steps = planner.rebalance_experts(current, torch.stack([load, load]))
    assert (changes, sorted(order.tolist()), placed.shape) == (1, [0, 1], (2, 2, 3))
    assert (placed == steps[2]).all()
    # Expert 0 carries 9 of 14 tokens: a copy on each rank.
    assert [0 in rank for rank in placed[0].tolist()] == [True, True]


def test_the_layouts_are_those_that_the_suites_ask_for() -> None:
    torch = pytest.importorskip("torch")
    assert ascend_swaps.append(None, "")(8, 2, 2, 0).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 0, 1]]
    assert ascend_swaps.ring(None, "")(8, 2, 2) == [0, 1, 2, 3, 4, 4, 5, 6, 7, 0]
    held = [torch.tensor([0, 1, -1]), torch.tensor([-1, 0, 1])]
    assert ascend_swaps.log2phy(None, "")(held, 1).tolist() == [0, 2, 3]
    count, local, _ = vllm_swaps.expert_map(None, "")(2, 1, 5, "round_robin")
    assert local is not None
    assert (count, local.tolist()) == (2, [-1, 0, -1, 1, -1])
    slots, counts = vllm_swaps.logical_maps(None, "")(torch.tensor([[0, 1, 0]]), 2)
    assert (slots.tolist(), counts.tolist()) == ([[[0, 2], [1, -1]]], [[2, 1]])
