# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Atheris, where it is installed: inputs that reach new code of this project are mutated further.

It cannot be asked to come back, so each target has a process of its own: `python -m harness.fuzz.coverage TARGET …`.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.fuzz import corpus
from harness.fuzz.judging import Finding

if TYPE_CHECKING:
    from harness.fuzz.targets import Target

# Of what reached new code, the most that is kept in the repository, and the longest input of it.
_MOST_KEPT, _LONGEST_KEPT = 60, 1500
_STARTING_SECONDS = 300


@dataclass(frozen=True)
class Covered:
    """What came of it.

    Attributes:
        inputs: how many were tried.
        said: atheris's last line about coverage.
        findings: at most one, where it stopped.
    """

    inputs: int
    said: str
    findings: list[Finding]


def is_installed() -> bool:
    """Return whether atheris can be imported."""
    return importlib.util.find_spec("atheris") is not None


def run(target: Target, seconds: float, output: Path, *, keep: bool) -> Covered:
    """Let atheris try a target.

    Args:
        target: one of the list.
        seconds: of trying, after its start.
        output: folder for the input that it stops at.
        keep: whether what reached new code goes into the corpus.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="atheris-") as folder:
        known = {*target.seeds, *corpus.read(target.name)}
        for number, content in enumerate(sorted(known)):
            (Path(folder) / f"known-{number}").write_bytes(content)
        stopped = output / f"{target.name}-stopped"
        stopped.unlink(missing_ok=True)
        options = [f"-max_total_time={int(seconds)}", "-max_len=4096", "-rss_limit_mb=2048", "-timeout=10"]
        options += [f"-exact_artifact_path={stopped}", "-print_final_stats=1", "-reduce_inputs=1"]
        command = [sys.executable, "-m", "harness.fuzz.coverage", target.name, folder, *options]
        limit = seconds + _STARTING_SECONDS
        done = subprocess.run(  # noqa: S603 - itself
            command, check=False, capture_output=True, text=True, errors="replace", timeout=limit
        )
        if keep:
            _keep(target, Path(folder))
    text = done.stderr
    counted = re.search(r"stat::number_of_executed_units: (\d+)", text)
    lines = re.findall(r"cov: \d+ ft: \d+ corp: \d+", text)
    content = stopped.read_bytes() if stopped.exists() else b""
    findings = [Finding(target.name, "atheris stopped", text[-3000:], content)] if done.returncode else []
    return Covered(int(counted.group(1)) if counted else 0, lines[-1] if lines else "no coverage", findings)


def _keep(target: Target, folder: Path) -> None:
    """Add a few short ones to the corpus: those that are found again soon are not worth their place."""
    found = [path.read_bytes() for path in folder.iterdir() if not path.name.startswith("known-")]
    short = sorted((content for content in found if 0 < len(content) <= _LONGEST_KEPT), key=len)
    step = max(1, len(short) // _MOST_KEPT)
    corpus.write(target.name, {*corpus.read(target.name), *short[::step][:_MOST_KEPT]})


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with atheris.instrument_imports(
        include=["expert_maps", "vllm_ascend_moe.core", "harness.record", "harness.accuracy"]
    ):
        from harness.fuzz.targets import TARGETS
    from harness.fuzz.judging import judge, prepare

    target = next(target for target in TARGETS if target.name == name)
    prepare(target)

    def try_out(content: bytes) -> None:
        finding = judge(target, content).finding
        if finding is not None:
            msg = f"{finding.kind}: {finding.text}"
            raise AssertionError(msg)

    atheris.Setup([sys.argv[0], *arguments], try_out)
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz(sys.argv[1], sys.argv[2:])
