# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What came of the tests against what is expected: a surprise of either kind is a problem."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.peers.run import Outcome
    from harness.peers.suites import Run

Kind = Literal["differs", "cannot run", "not ours"]
KINDS: tuple[Kind, ...] = ("differs", "cannot run", "not ours")


@dataclass(frozen=True)
class Expected:
    """Tests that do not pass with a function of ours, and why.

    Attributes:
        run: the run's name.
        suite: the suite's.
        tests: a name, or its beginning and ``*``.
        kind: ``differs``: fails, by design; ``cannot run``: skipped or fails for want of something here; ``not ours``:
            passes without calling a function of ours.
        reason: in words.
        shows: what the message must contain.
        variants: which ones; none for all.
    """

    run: str
    suite: str
    tests: str
    kind: Kind
    reason: str
    shows: str = ""
    variants: tuple[str, ...] = ()

    def covers(self, run: Run, outcome: Outcome) -> bool:
        """Whether it speaks of this test."""
        beginning, star, _ = self.tests.partition("*")
        named = outcome.test.startswith(beginning) if star else outcome.test == self.tests
        where = (self.run, self.suite) == (run.name, outcome.suite)
        return where and named and (not self.variants or outcome.variant in self.variants)

    def problem(self, outcome: Outcome) -> str | None:
        """Say what is not as expected; None where it is."""
        fits = {
            "differs": outcome.outcome == "failed",
            "cannot run": outcome.outcome in {"failed", "skipped"},
            "not ours": outcome.outcome == "passed" and not outcome.calls,
        }[self.kind]
        if not fits:
            return f"{_came(outcome)}; expected that it {self.kind}: {self.reason}"
        if self.shows not in outcome.message:
            return f"{outcome.outcome} with {outcome.message!r}; expected {self.shows!r} in it"
        return None


@dataclass
class Verdict:
    """One suite and variant.

    Attributes:
        suite: the suite's name.
        variant: empty where it has only one.
        passed: tests that pass with a function of ours.
        others: how many of each kind do not, and are expected not to.
        problems: what is not as expected.
    """

    suite: str
    variant: str
    passed: int = 0
    others: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """All tests."""
        return self.passed + self.others.total() + len(self.problems)


def judge(
    run: Run, outcomes: list[Outcome], expected: Iterable[Expected], counts: dict[tuple[str, str, str], int]
) -> list[Verdict]:
    """Compare.

    Args:
        run: which.
        outcomes: of every test.
        expected: the expectations; the first one that covers a test holds.
        counts: how many tests there are, by run, suite and variant.

    Returns:
        A verdict for each suite and variant, in the order of the suites.
    """
    expectations = [each for each in expected if each.run == run.name]
    used: set[Expected] = set()
    verdicts = {
        (suite.name, variant): Verdict(suite.name, variant)
        for suite in run.suites
        for variant in suite.variants
    }
    emulated = {suite.name: suite.emulated for suite in run.suites}
    for outcome in outcomes:
        verdict = verdicts[outcome.suite, outcome.variant]
        name = f"{run.name}, {_of(verdict)}: {outcome.test}"
        expectation = next((each for each in expectations if each.covers(run, outcome)), None)
        if expectation is not None:
            used.add(expectation)
            problem = expectation.problem(outcome)
            if problem is None:
                verdict.others[expectation.kind] += 1
            else:
                verdict.problems.append(f"{name} {problem}")
        elif outcome.outcome == "passed" and (outcome.calls or emulated[outcome.suite]):
            verdict.passed += 1
        else:
            verdict.problems.append(f"{name} {_came(outcome)}; expected a pass with ours")
    for verdict in verdicts.values():
        wanted = counts.get((run.name, verdict.suite, verdict.variant), 0)
        if verdict.count != wanted:
            verdict.problems.append(f"{run.name}, {_of(verdict)}: {verdict.count} tests; expected {wanted}")
    for expectation in expectations:
        if expectation not in used:
            verdict = next(each for each in verdicts.values() if each.suite == expectation.suite)
            verdict.problems.append(
                f"{run.name}, {expectation.suite}: there is no test {expectation.tests}; expected one that {expectation.kind}"
            )
    return list(verdicts.values())


def _of(verdict: Verdict) -> str:
    return f"{verdict.suite} ({verdict.variant})" if verdict.variant else verdict.suite


def _came(outcome: Outcome) -> str:
    if outcome.outcome == "passed":
        return f"passed, with {outcome.calls} calls of ours"
    return f"{outcome.outcome} ({outcome.message})"
