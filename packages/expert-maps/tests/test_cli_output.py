# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is printed: on any code page, at any width, to a reader that leaves, after Ctrl-C."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cli_runs import generate, run, run_with_encoding

from expert_maps.cli import entry
from expert_maps.cli import work as work_module
from expert_maps.cli.output import as_count, as_size
from expert_maps.cli.work import work
from expert_maps.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CODE_PAGES = ("ascii", "cp1252", "latin-1", "cp437", "cp936")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "load.npy", rng.lognormal(size=(2, 3, 16)) * 10**12)
    assert run("plan", "load.npy", "--redundant", 4, "--ep-size", 4, "--output", "map.json").exit_code == 0
    return "load.npy"


def commands(load: str) -> list[tuple[object, ...]]:
    counts = ("--redundant", 4, "--ep-size", 4)
    return [
        (),
        ("plan", "--help"),
        ("plan", load, *counts, "--table"),
        ("plan", load, *counts, "--current", "map.json", "--expert-bytes", 10**12, "--table"),
        ("rescale", "map.json", load, "--ep-size", 5, "--table"),
        ("weights", "map.json", load, "--table"),
        ("evaluate", "map.json", load, "--table", "--layer", 1),
        ("compare", load, "--ep-size", 4),
        ("show", "map.json"),
        ("diff", "map.json", "map.json", "--table"),
        ("generate", "--experts", 4, "--ep-size", 2),
        ("check", "map.json"),
    ]


@pytest.mark.parametrize("encoding", CODE_PAGES)
def test_every_code_page_can_print_everything(
    monkeypatch: pytest.MonkeyPatch, load: str, encoding: str
) -> None:
    for command in commands(load):
        code, out, err = run_with_encoding(monkeypatch, encoding, *command)
        assert code == 0, command
        assert all(line.startswith(("load.npy: ", "warning: load.npy: ")) for line in err.splitlines()), err
        assert out
        assert "\\u" not in out
    code, _, err = run_with_encoding(monkeypatch, encoding, "check", "\udcff→é中\x1b[31m.json")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err


def numbers(text: str) -> set[str]:
    return {number.rstrip(",.") for number in re.findall(r"\d[\d,.]*", text)}


@pytest.mark.parametrize("columns", [1, 20, 40, 79])
def test_no_number_is_cut_at_any_width(load: str, columns: int) -> None:
    for command in commands(load)[2:7]:
        wide = run(*command).stdout
        narrow = run(*command, columns=columns).stdout
        assert "…" not in narrow
        assert numbers(wide) == numbers(narrow), command


def test_lines_are_broken_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch, load: str) -> None:
    wide = run("evaluate", "map.json", load).stdout
    monkeypatch.setenv("COLUMNS", "20")
    screen = Terminal(terminal=True)
    monkeypatch.setattr(sys, "stdout", screen)
    assert entry.run(["evaluate", "map.json", load]) == 0
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= 20 or " " not in line.strip() for line in lines)
    assert " ".join(screen.getvalue().split()) == " ".join(wide.split())


def test_tables_are_whole_without_a_terminal(load: str) -> None:
    table = run("evaluate", "map.json", load, "--table").stdout
    assert "│ total │" in table
    assert max(len(line) for line in table.splitlines() if "│" in line) > 80


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (44_040_192, "44.0 MB"),
        (12_345_678_901, "12.3 GB"),
        (4_404_019_200_000, "4,404.0 GB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert as_size(count) == text


def test_counts_and_names() -> None:
    assert [as_count(value) for value in (0, 1234, 1234.5, 0.25, 1e15)] == [
        "0",
        "1,234",
        "1,234",
        "0.25",
        "1,000,000,000,000,000",
    ]
    assert printable("plain → text") == "plain → text"
    assert printable("a\x1b[2J\x9b\u202e\udcff\tb") == "a\\x1b[2J\\x9b\\u202e\\udcff\\tb"


# Long work


class Terminal(io.StringIO):
    """A terminal, if it says so."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def draw(*, terminal: bool, seconds: float = 0.3) -> str:
    screen = Terminal(terminal=terminal)

    def slow(progress: Callable[[int, int], object]) -> str:
        progress(1, 2)
        time.sleep(seconds)
        return "done"

    assert work("planning", slow, screen) == "done"
    return screen.getvalue()


def test_a_bar_is_drawn_only_on_a_terminal_when_work_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not draw(terminal=True)
    monkeypatch.setattr(work_module, "_QUIET_SECONDS", 0.01)
    assert "planning" in draw(terminal=True)
    assert not draw(terminal=False)
    assert not draw(terminal=True, seconds=0)


def test_errors_of_long_work_are_raised_where_it_is_waited_for() -> None:
    def fail(_: object) -> None:
        msg = "no"
        raise MemoryError(msg)

    with pytest.raises(MemoryError):
        work("planning", fail)


# Processes

PROGRAM = "import sys; sys.argv[0] = 'expert-maps'; from expert_maps.cli import main; main()"


def start(*arguments: object, first: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the command line; modules are looked for in the first folder before all others."""
    paths = [*([str(first)] if first else []), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # A background job of a shell ignores Ctrl-C, and so would all that it starts.
    listening = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {PROGRAM}"
    command = [sys.executable, "-c", listening, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    path = generate(tmp_path)
    for arguments in (("show", path), ("--help",), ("generate", "--experts", 8, "--ep-size", 4)):
        process = start(*arguments)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        with process.stderr:
            assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


def test_a_full_disk_behind_standard_output_is_one_line(tmp_path: Path) -> None:
    path = generate(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "show", str(path)],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.decode() == "error: standard output cannot be written: No space left on device\n"


def test_ctrl_c_ends_planning_at_once_and_writes_nothing(tmp_path: Path) -> None:
    # Layers that take the compiled planner a minute.
    np.save(tmp_path / "load.npy", np.random.default_rng(0).lognormal(size=(250, 512)))
    counts = ("--experts", 512, "--redundant", 1536, "--ep-size", 64, "--layers", 250)
    assert run("generate", *counts, "--output", "map.json").exit_code == 0
    process = start("rescale", "map.json", "load.npy", "--ep-size", 126, "--output", "next.json")
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 2
    assert (process.returncode, out, err) == (130, b"", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["load.npy", "map.json"]


@pytest.mark.parametrize("module", ["typer", "numpy"])
def test_ctrl_c_while_a_module_is_imported_ends_without_a_word(tmp_path: Path, module: str) -> None:
    # A module of that name that takes its time, before the real one.
    (tmp_path / f"{module}.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    process = start("check", "map.json", first=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")
