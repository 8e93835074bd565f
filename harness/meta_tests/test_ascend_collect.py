# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`collect`: what it starts, what it refuses before, and how a failure is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from harness.ascend import __main__ as command
from harness.ascend import ending, engine
from harness.ascend.models import TINY_MOE

ROOT = Path(__file__).parents[2]


class Started:
    """What would have been run, and what it says."""

    def __init__(self, log: str = "", code: int = 0) -> None:
        self.words: tuple[str, ...] = ()
        self.chip = ""
        self._log, self._code = log, code

    def environment(self, _staged: object, chip: str, _folder: Path, *, plugin: bool) -> dict[str, str]:
        assert plugin
        self.chip = chip
        return {}

    def run_module(self, words: tuple[str, ...], log: Path, _variables: dict[str, str]) -> int:
        self.words = words
        log.write_text(self._log, encoding="utf-8")
        return self._code


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: Started, *words: str) -> Result:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "stage", lambda release: SimpleNamespace(release=release))
    monkeypatch.setattr(engine, "environment", started.environment)
    monkeypatch.setattr(ending, "run_module", started.run_module)
    return CliRunner().invoke(command.app, ["collect", "--output", str(tmp_path / "emulated.json"), *words])


def test_the_doctor_collects_beside_the_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = Started()
    result = run(monkeypatch, tmp_path, started, "--chip", "A2", "--release", "newest", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "emulated, not hardware: vllm-ascend 0.30.0rc2, A2, 2 ranks" in result.output
    assert started.chip == "A2"
    assert started.words == (
        *("vllm_ascend_moe", "doctor", "collect", "--model", str(TINY_MOE.absolute())),
        *("--output", str(tmp_path / "emulated.json"), "--ranks", "2", "--dtype", "bfloat16"),
    )


def test_what_the_doctor_refuses_is_told_in_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = Started("INFO: much\nerror: the map is odd\nINFO: more\n", code=2)
    result = run(monkeypatch, tmp_path, started)
    assert result.exit_code == 2
    assert "error: the map is odd (log: " in result.output
    result = run(monkeypatch, tmp_path, Started("INFO: much\n", code=124))
    assert result.exit_code == 124
    assert "error: it ended with exit code 124" in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--chip", "A9"), "--chip is 'A9'; expected A2 or A3"),
        (("--release", "0.1"), "--release is '0.1'; expected newest or one of"),
        (("--ranks", "0"), "--ranks is 0; expected at least 1"),
        (("--dtype", "int4"), "--dtype is 'int4'; expected one of float32"),
        (("--model", "accuracy"), "--model is accuracy; expected a checkpoint's folder"),
        (("--map", "absent.json"), "absent.json"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = Started()
    result = run(monkeypatch, tmp_path, started, *words)
    assert result.exit_code == 2
    assert said in result.output
    assert started.words == ()
