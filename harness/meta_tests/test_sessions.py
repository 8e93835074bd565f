# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What nox sessions write when they are called without words: nothing that git knows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
# Options of this project's commands that name what is written.
WRITING = ("--output", "--record", "--table", "--plot", "--write-page", "--benchmark-json")
# `lock` writes requirement files, which is what it is for; `build` and `sanitize` write to build/ and compile first.
OTHERS = {"lock", "build", "sanitize"}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Return what tells the commands of a session, none of which is run."""
    nox = pytest.importorskip("nox")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    import noxfile  # type: ignore[import-not-found, unused-ignore] # not installed, it lies at the top

    def of(name: str, *posargs: str) -> list[list[str]]:
        found: list[list[str]] = []
        shared = SimpleNamespace(run=lambda *words, **_: found.append(list(words)))
        shared.under = lambda _: shared
        for install in ("install_dev", "install_serve"):
            monkeypatch.setattr(noxfile, install, lambda _: shared)
        session = SimpleNamespace(
            posargs=list(posargs),
            invoked_from=str(tmp_path),
            bin=str(tmp_path),
            run=shared.run,
            install=lambda *_, **__: None,
            create_tmp=lambda: str(tmp_path),
        )
        function: Any = getattr(noxfile, name)
        assert isinstance(function, nox._decorators.Func)
        function.func(session)
        return found

    of.names = sorted(  # type: ignore[attr-defined]
        name for name, value in vars(noxfile).items() if isinstance(value, nox._decorators.Func)
    )
    return of


def written(words: list[str]) -> list[str]:
    """Return what a command is told to write."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    after = [value for word, value in pairs if word in WRITING]
    return after + [
        word.partition("=")[2] for word in words if word.startswith(tuple(f"{name}=" for name in WRITING))
    ]


def test_sessions_without_words_write_below_build_alone(commands: Any) -> None:  # noqa: ANN401 - with names
    assert {"unit", "bench", "npu_bench", "planner_bench", "serving_bench", "accuracy", "peers"} <= set(
        commands.names
    )
    for name in set(commands.names) - OTHERS:
        ran = commands(name)
        assert ran, name
        for words in ran:
            assert all(Path(path).parts[0] == "build" for path in written(words)), (name, words)


def test_a_run_of_the_planner_is_kept_when_asked(commands: Any) -> None:  # noqa: ANN401 - as above
    [words] = commands("planner_bench", "--record", "--repeats", "3")
    assert written(words) == [
        f"harness/bench/{name}" for name in ("planner.md", "planner.svg", "records/planner.jsonl")
    ]
    assert words[-2:] == ["--repeats", "3"]


def test_what_a_map_gains_is_a_word_of_the_session_that_times_serving(commands: Any) -> None:  # noqa: ANN401 - as above
    [words] = commands("serving_bench", "gain", "--rounds", "2")
    assert words[-3:] == ["harness.bench.gain", "--rounds", "2"]
    [words] = commands("serving_bench", "--rounds", "2")
    assert words[-3:] == ["harness.bench.serving", "--rounds", "2"]


def test_the_cheap_ones_leave_the_checkout_as_it_was(tmp_path: Path) -> None:
    def status() -> str:
        command = ["git", "status", "--porcelain", "--untracked-files=no"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout")
    before = status()
    for words in (
        ["harness.golden", "check"],
        ["harness.demo", "--output", str(tmp_path / "expert_map.json")],
        ["harness.bench.planner", "--part", "incremental", "--repeats", "1"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert status() == before


def test_the_list_of_sessions_reads_as_a_table(commands: Any) -> None:  # noqa: ANN401 - as above
    noxfile = sys.modules["noxfile"]
    for name in commands.names:
        line = str(getattr(noxfile, name).__doc__).splitlines()[0]
        assert len(line) <= 70, (name, line)
        # Options are on the page of sessions.
        assert "`" not in line, (name, line)


def test_the_hashes_of_packages_are_those_of_their_bytes(tmp_path: Path) -> None:
    from harness.sessions.wheels import hashes

    for name, content in (("b", b"two"), ("a", b"one")):
        (tmp_path / name).write_bytes(content)
    first = hashes(tmp_path)
    assert list(first) == ["a", "b"]
    (tmp_path / "a").write_bytes(b"One")
    assert {name for name, digest in hashes(tmp_path).items() if digest != first[name]} == {"a"}


def test_workers_run_tests_in_one_drawn_order(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_bytes((ROOT / "conftest.py").read_bytes())
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n", encoding="utf-8")
    (tmp_path / "tests").mkdir()
    tests = "".join(f"def test_{number}(): pass\n" for number in range(12))
    (tmp_path / "tests" / "test_order.py").write_text(tests, encoding="utf-8")
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EXPERT_MAPS_ORDER", "PYTEST"))
    }

    def order(*options: str) -> tuple[str, list[str]]:
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environ)
        assert done.returncode == 0, done.stdout + done.stderr
        seed = done.stdout.split("--order-seed ", 1)[1].split()[0]
        return seed, re.findall(r"::(test_\d+) PASSED", done.stdout)

    # Workers that draw for themselves collect in different orders, and pytest-xdist stops.
    seed, _ = order("-n", "2")
    first, again, files = (
        order("--order-seed", seed)[1],
        order("--order-seed", seed)[1],
        order("--order-seed", "0")[1],
    )
    assert first == again
    assert files == [f"test_{number}" for number in range(12)]
    assert sorted(first) == sorted(files)
    assert order("--order-seed", "1")[1] != files
