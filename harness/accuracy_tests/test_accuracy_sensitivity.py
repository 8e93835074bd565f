# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults and harmless changes through vLLM's CPU build: few questions, the first layer, an engine for each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 24
FAULTS = ("zeroed", "dropped slot")


def run(module: str, folder: Path, *arguments: str) -> dict[str, Any]:
    words = ["--questions", str(QUESTIONS), "--output", str(folder), "--scratch", str(folder / "scratch")]
    done = subprocess.run(
        [sys.executable, "-m", f"harness.accuracy.{module}", *words, *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "tiny-moe" / f"{module}.json").read_text(encoding="utf-8"))
    page = (folder / "tiny-moe" / f"{module}.md").read_text(encoding="utf-8")
    assert str(ROOT) not in page
    assert str(folder) not in json.dumps(found)
    return found


def test_faults_are_caught_and_undone(tmp_path: Path) -> None:
    chosen = [word for kind in FAULTS for word in ("--fault", kind)]
    (part,) = run("sensitivity", tmp_path, "--layers", "1", *chosen)["parts"]
    # So few questions decide nothing about the loss; nothing else may fail without a fault.
    assert part["clean"]["verdict"] == "undecided"
    assert [fault["kind"] for fault in part["faults"]] == list(FAULTS)
    for fault in part["faults"]:
        assert fault["verdict"] == "worse"
        assert fault["caught_by_answers_alone"]
        assert "log-probabilities, largest" in fault["caught_by"]
        assert fault["restored_largest"] < 5e-5
    zeroed, dropped = part["faults"]
    # Only answers tell that a slot with the right weights is not served.
    assert "replicas equal" in zeroed["caught_by"]
    assert "replicas equal" not in dropped["caught_by"]


def test_a_harmless_change_raises_no_alarm(tmp_path: Path) -> None:
    found = run("false_alarms", tmp_path, "--seeds", "1", "--bfloat16-seeds", "0")
    assert found["alarms"] == 0
    (seed,) = found["seeds"]
    assert seed["verdict"] == "undecided"
    assert seed["digest"]
    outcomes = {criterion["name"]: criterion["outcome"] for criterion in seed["criteria"]}
    assert (outcomes.pop("loss"), outcomes.pop("McNemar")) == ("undecided", "note")
    assert set(outcomes.values()) == {"pass"}


@pytest.mark.parametrize("module", ["sensitivity", "false_alarms"])
def test_bad_input_is_one_line(module: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"harness.accuracy.{module}", "--model", "no-such-model"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: model is 'no-such-model'; expected")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
