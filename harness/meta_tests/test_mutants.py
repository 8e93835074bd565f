# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The list of faults is what it says it is, and a fault that cannot be tried is an error; trying them is `nox -s mutants`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.mutants import MUTANTS, Mutant, __main__, pains
from harness.mutants.mutant import MutantError

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
C_FILES = "packages/expert-maps/native"
# Only for the tests.
NO_PLANNER = {"twins.c"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_every_fault_can_be_put_into_its_file_and_names_a_test(mutant: Mutant) -> None:
    assert mutant.applied(ROOT) != (ROOT / mutant.file).read_text(encoding="utf-8")
    path, _, function = mutant.test.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8")


def test_every_c_file_has_one_and_so_has_what_else_was_promised() -> None:
    files = Counter(mutant.file for mutant in MUTANTS)
    assert {path.name for path in (ROOT / C_FILES).glob("*.c")} - NO_PLANNER <= {
        Path(file).name for file in files
    }
    library = "packages/expert-maps/src/expert_maps/"
    for name in ("maps", "layouts", "routing", "formats/arrays", "formats/torch_files"):
        assert files[f"{library}{name}.py"]
    assert files["harness/src/harness/accuracy/statistics.py"]
    assert sum(files.values()) >= 60
    assert len({mutant.what for mutant in MUTANTS}) == len(MUTANTS)
    assert 10 <= sum(mutant.short for mutant in MUTANTS) <= 18


def test_every_report_has_a_fault_or_a_reason() -> None:
    assert len(pains.PAINS) == 49
    assert [report for report, fault in pains.PAINS if not isinstance(fault, Mutant)] == [
        "new weights into a running EPLB server",
        "load metrics over HTTP",
        "a rescale with many slots a rank takes minutes",
    ]
    assert {fault for _, fault in pains.PAINS if isinstance(fault, Mutant)} <= set(MUTANTS)


def test_the_table_names_report_bug_and_catcher(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 49
    assert lines[46].startswith(
        "47 two servers with one record lose rows: a record's lock is shared -> packages/"
    )


def made(tmp_path: Path, text: str) -> Path:
    (tmp_path / "a.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 2\n", "'x is 3': a.py has its text 0 times; expected once: 'x = 1'"),
        ("x = 1\nx = 1\n", "'x is 3': a.py has its text 2 times"),
        (None, "'x is 3': there is no file a.py"),
    ],
)
def test_a_fault_whose_text_is_not_there_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant = Mutant("x is 3", "a.py", "x = 1", "x = 3", "a.py::test_x")
    root = tmp_path if text is None else made(tmp_path, text)
    with pytest.raises(MutantError, match="x is 3"):
        mutant.applied(root)
    monkeypatch.setattr(__main__, "MUTANTS", (mutant,))
    assert __main__.main([], root) == 2
    assert message in capsys.readouterr().err


def test_a_fault_is_put_in_once(tmp_path: Path) -> None:
    mutant = Mutant("x is 3", "a.py", "x = 1", "x = 3", "a.py::test_x")
    assert mutant.applied(made(tmp_path, "x = 1\ny = 1\n")) == "x = 3\ny = 1\n"


class _Copy:
    """Stands for a copy in which the second fault survives."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def check(self, mutants: list[Mutant]) -> None:
        assert mutants

    def try_out(self, mutant: Mutant) -> object:
        from harness.mutants.trial import Outcome

        return Outcome(mutant, None if mutant.what == "two" else mutant.test)


@pytest.mark.parametrize(("words", "code"), [(["one"], 0), ([], 1), (["--short"], 0), (["three"], 2)])
def test_a_survivor_fails_the_session(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
) -> None:
    one, two = (
        Mutant(name, "a.py", "x = 1", "x = 3", "a.py::test_x", short=name == "one") for name in ("one", "two")
    )
    monkeypatch.setattr(__main__, "MUTANTS", (one, two))
    copy: Callable[[Path, Path], _Copy] = _Copy
    monkeypatch.setattr(__main__, "Copy", copy)
    assert __main__.main(words, made(tmp_path, "x = 1\n")) == code
    said = capsys.readouterr()
    assert ("a.py: two: SURVIVED a.py::test_x" in said.out) == (code == 1)
    assert (code == 2) == ("no mutant" in said.err)
