# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Fuzz every way in: `python -m harness.fuzz`, `--inputs N`, `--nightly`, `--coverage SECONDS`, or those that words name."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.fuzz import coverage, documents, hostile
from harness.fuzz.running import Counts, run
from harness.fuzz.targets import TARGETS, Target

if TYPE_CHECKING:
    from harness.fuzz.judging import Finding

_NIGHTLY = 1_000_000
_INPUTS = 18_000
_SECONDS = 45.0
_FOUND, _UNUSABLE = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each target: inputs by source, how many were read, and what was found.

    Returns:
        0 where nothing was found, 1 where something was, 2 where no target has one of the words.
    """
    parser = argparse.ArgumentParser(prog="harness.fuzz", description=__doc__)
    parser.add_argument("words", nargs="*", help="only targets whose name has one of these")
    parser.add_argument("--inputs", type=int, default=_INPUTS, help="new inputs, over all targets")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="most of them, over all targets")
    parser.add_argument(
        "--nightly", action="store_true", help=f"{_NIGHTLY:,} inputs, and atheris a minute a target"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another gives other inputs; of the day with --nightly"
    )
    parser.add_argument("--coverage", type=float, default=0.0, help="seconds of atheris for each target")
    parser.add_argument("--keep", action="store_true", help="add what reached new code to the corpus")
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"), help="where findings go")
    options = parser.parse_args(arguments)
    if options.nightly:
        options.inputs, options.seconds, options.coverage = _NIGHTLY, 4 * 3600.0, options.coverage or 60.0
        options.seed = options.seed or int(time.time() // 86400)
    chosen = [
        target
        for target in TARGETS
        if not options.words or any(word in target.name for word in options.words)
    ]
    if not chosen:
        sys.stderr.write(
            f"no target has one of these words; there are {', '.join(t.name for t in TARGETS)}\n"
        )
        return _UNUSABLE
    findings = [] if options.words else _try_hostile()
    findings += _try_all(chosen, options)
    if options.coverage > 0:
        findings += _try_coverage(chosen, options)
    for finding in findings:
        _tell(finding, options.output)
    return _FOUND if findings else 0


def _try_hostile() -> list[Finding]:
    cases, findings = hostile.try_all()
    sys.stdout.write(
        f"{'hostile files':14} {cases:9,} cases: pipes, devices, links, bombs, counts, nesting\n"
    )
    return findings


def _try_all(chosen: list[Target], options: argparse.Namespace) -> list[Finding]:
    total = 0
    findings: list[Finding] = []
    share = options.inputs // len(chosen)
    documents.prepare()
    for target in chosen:
        start = time.monotonic()
        counts = run(target, share, options.seed, options.seconds / len(chosen))
        findings += counts.findings.values()
        total += counts.kept + counts.mutated + counts.made
        _print(target, counts, time.monotonic() - start)
    sys.stdout.write(
        f"{'all':14} {total:9,} inputs, {len(findings)} kinds of findings; seed {options.seed}\n"
    )
    return findings


def _print(target: Target, counts: Counts, seconds: float) -> None:
    tried = counts.kept + counts.mutated + counts.made
    sys.stdout.write(
        f"{target.name:14} {tried:9,} inputs ({counts.kept} kept, {counts.mutated} mutated, {counts.made} made by "
        f"Hypothesis), {counts.read:,} read, {len(counts.findings)} kinds of findings, {counts.peak / 2**20:.0f} MiB "
        f"more, {seconds:.1f} s\n"
    )
    sys.stdout.flush()


def _try_coverage(chosen: list[Target], options: argparse.Namespace) -> list[Finding]:
    if not coverage.is_installed():
        sys.stdout.write("atheris is not installed: no inputs that look for new code\n")
        return []
    total = 0
    findings: list[Finding] = []
    for target in chosen:
        found = coverage.run(target, options.coverage, options.output, keep=options.keep)
        total += found.inputs
        findings += found.findings
        sys.stdout.write(f"{target.name:14} {found.inputs:9,} inputs by atheris, {found.said}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{'all':14} {total:9,} inputs by atheris, {len(findings)} findings\n")
    return findings


def _tell(finding: Finding, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(finding.content).hexdigest()[:16]
    path = folder / f"{finding.target.replace(' ', '-')}-{name}"
    path.write_bytes(finding.content)
    sys.stdout.write(f"\n{finding.target}: {finding.kind}: {path}\n{finding.text}\n")


if __name__ == "__main__":
    raise SystemExit(main())
