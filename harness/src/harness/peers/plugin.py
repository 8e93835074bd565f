# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin inside a run: it puts our functions where their test modules look for theirs, and writes what came.

Loaded by ``-p harness.peers.plugin``; a test's name is replaced while that test runs and set back after it.
"""

from __future__ import annotations

import importlib
import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.peers import calls
from harness.peers.suites import RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.peers.suites import Run, Suite, Swap

_PARAMETER = "peers_variant"
_MESSAGE = 300
_run: Run | None = None
_outcomes: Path | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the parent process says."""
    parser.addoption("--peers-run", help="The run's name.")
    parser.addoption("--peers-outcomes", help="A file to which each test's outcome is appended.")


def pytest_configure(config: pytest.Config) -> None:
    """Find the run."""
    global _run, _outcomes  # noqa: PLW0603 - pytest gives a plugin no place of its own before collection
    name = config.getoption("--peers-run")
    _run = next(run for run in RUNS if run.name == name)
    _outcomes = Path(config.getoption("--peers-outcomes"))


def _choices(path: Path) -> list[tuple[Suite, str]]:
    """Return the suites that a file is in, each with its variants."""
    assert _run is not None
    return [
        (suite, variant)
        for suite in _run.suites
        if any(path.as_posix().endswith(f"/{file}") for file in suite.files)
        for variant in suite.variants
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each suite and variant of its file."""
    choices = _choices(metafunc.definition.path)
    if len(choices) > 1:
        metafunc.fixturenames.append(_PARAMETER)
        ids = [f"peers{index}" for index in range(len(choices))]
        metafunc.parametrize(_PARAMETER, range(len(choices)), ids=ids)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Put ours in place for this test."""
    suite, variant = _chosen(item)
    calls.reset()
    with _replaced(item, suite.swaps, variant):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:  # noqa: ANN401, ARG001 - pytest's
    """Keep what matters of each test: its outcome, how often ours was called, and the last word of an error."""
    report = yield
    is_last_word = report.when == "call" or (report.when == "setup" and not report.passed)
    if is_last_word or (report.when == "teardown" and report.failed):
        suite, variant = _chosen(item)
        record = {
            "suite": suite.name,
            "variant": variant,
            "test": _name(item),
            "outcome": report.outcome,
            "calls": calls.count(),
            "message": _message(report),
        }
        assert _outcomes is not None
        with _outcomes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    return report


def _chosen(item: pytest.Item) -> tuple[Suite, str]:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return _choices(item.path)[parameters.get(_PARAMETER, 0)]


def _name(item: pytest.Item) -> str:
    """Return a test's name without our parameter."""
    name = item.nodeid.split("::", 1)[1].replace("::", ".")
    return re.sub(r"-?\bpeers\d+\b-?", "", name).replace("[]", "")


def _message(report: Any) -> str:  # noqa: ANN401 - of pytest, private in part
    """Return the beginning of what a report says, in one line."""
    text = report.longrepr
    if report.passed:
        text = ""
    elif report.skipped:
        text = text[2] if isinstance(text, tuple) else text
    elif (crash := getattr(text, "reprcrash", None)) is not None:
        text = crash.message
    return " ".join(str(text).split())[:_MESSAGE]


@contextmanager
def _replaced(item: pytest.Item, swaps: tuple[Swap, ...], variant: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for swap in swaps:
            module, colon, name = swap.name.partition(":")
            owner = importlib.import_module(module) if colon else getattr(item, "module")  # noqa: B009 - only of functions
            name = name or module
            if not colon and not hasattr(owner, name):
                continue  # another file of the suite imports it
            where, _, maker = swap.maker.partition(":")
            ours = getattr(importlib.import_module(where), maker)(getattr(owner, name), variant)
            patch.setattr(owner, name, ours)
        yield
