# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One run: archives in place, pytest in a process of its own, and the outcomes that it wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.ascend.stage import stage
from harness.peers.sources import unpack_tests
from vllm_ascend_moe import releases

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from harness.peers.suites import Run

_CHIP = "A3"
# The one program by which vllm-ascend's tests find out whether there is an NPU: where it ends well there is one.
_PROBE = "npu-smi"
_LINES = 15


class RunError(RuntimeError):
    """A run came to no end, or wrote no outcomes; the message has pytest's last lines."""


@dataclass(frozen=True)
class Outcome:
    """What came of one test.

    Attributes:
        suite: its suite's name.
        variant: which of the suite's; empty where it has only one.
        test: its name in its file.
        outcome: ``passed``, ``failed`` or ``skipped``.
        calls: how often a function of ours was called.
        message: the first characters of the error or the reason.
    """

    suite: str
    variant: str
    test: str
    outcome: str
    calls: int
    message: str


def execute(run: Run, folder: Path) -> list[Outcome]:
    """Fetch what a run needs and run it.

    Args:
        run: which.
        folder: where source distributions and unpacked tests are kept.

    Raises:
        ContractError: something could not be fetched.
        RunError: see the class.
    """
    tests = unpack_tests(run.source, (*run.files, *run.helpers), folder)
    work = (folder / "work" / run.name.replace(" ", "-")).absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    outcomes, log = work / "outcomes.jsonl", work / "log.txt"
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-q", "-W", "ignore"]
    command += ["-p", "no:cacheprovider", "-p", "harness.peers.plugin", "--peers-run", run.name]
    command += ["--peers-outcomes", str(outcomes), *run.files]
    _call(run, command, tests, _environment(run, work), log)
    if not outcomes.is_file():
        msg = f"{run.name}: no test was run: {_last_lines(log)}"
        raise RunError(msg)
    lines = outcomes.read_text(encoding="utf-8").splitlines()
    return _merge(Outcome(**json.loads(line)) for line in lines)


def _merge(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return one outcome a test: its parts (subtests, an end that fails) are written too, and a failure counts."""
    merged: dict[tuple[str, str, str], Outcome] = {}
    for outcome in outcomes:
        key = outcome.suite, outcome.variant, outcome.test
        if key not in merged or merged[key].outcome != "failed":
            merged[key] = outcome
    return list(merged.values())


def _environment(run: Run, work: Path) -> dict[str, str]:
    """Return the variables of a run: those of this process, and a release of vllm-ascend in front where it has one."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
    if run.vllm_ascend is None:
        return env
    release = releases.find(run.vllm_ascend)
    assert release is not None, run.vllm_ascend
    made = stage(release).environment(_CHIP)
    probe = work / "bin" / _PROBE
    probe.parent.mkdir()
    probe.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    probe.chmod(0o755)
    made["PATH"] = os.pathsep.join([str(probe.parent), env.get("PATH", os.defpath)])
    return {**env, **made}


def _call(run: Run, command: list[str], place: Path, env: dict[str, str], log: Path) -> None:
    """Run pytest to its end, or to its time; whatever it started stops with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - no shell, this interpreter
            command, cwd=place, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=run.timeout_s)
        except subprocess.TimeoutExpired as error:
            msg = f"{run.name}: took more than {run.timeout_s} s: {_last_lines(log)}"
            raise RunError(msg) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    # 0: all passed; 1: some failed. Anything else is no verdict on tests.
    if process.returncode not in {0, 1}:
        msg = f"{run.name}: pytest ended with {process.returncode}: {_last_lines(log)}"
        raise RunError(msg)


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " / ".join(line.strip() for line in lines[-_LINES:] if line.strip())
