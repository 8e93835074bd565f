# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The page: which of their tests apply and pass with ours, and why the rest does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.peers.judge import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.peers.judge import Expected, Verdict
    from harness.peers.suites import Run

_HEAD = """# Peers' own tests on this project's functions

Written by `nox -s peers -- --write-page`; the session fails where it is stale.

The source distributions of vLLM and vllm-ascend carry tests. They are fetched by hash and run unchanged, with functions of
this project in place of theirs; nothing of them is kept here. *Pass* counts a test only if it called a function of ours, or,
in suites of which only the emulated NPU is ours, if it passed on that. vllm-ascend is emulated, not hardware.
A test that *differs* fails by design, one that *cannot run* needs what is not here, and one that is *not ours* asks nothing of
what was replaced.
"""


def render(results: Iterable[tuple[Run, list[Verdict]]], expected: Iterable[Expected]) -> str:
    """Return the page of all runs."""
    rows = ["| tests of | suite | ours | tests | pass | differ | cannot run | not ours |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    kept = list(results)
    for run, verdicts in kept:
        ours = {suite.name: suite.ours for suite in run.suites}
        for verdict in verdicts:
            name = f"{verdict.suite}: `{verdict.variant}`" if verdict.variant else verdict.suite
            numbers = [verdict.count, verdict.passed, *(verdict.others[kind] for kind in KINDS)]
            rows.append(f"| {run.name} | {name} | {ours[verdict.suite]} | {' | '.join(map(str, numbers))} |")
    reasons = ["| tests of | suite | test | | why |", "|---|---|---|---|---|"]
    for run, _ in kept:
        for each in (each for each in expected if each.run == run.name):
            variants = f" ({', '.join(f'`{name}`' for name in each.variants)})" if each.variants else ""
            reasons.append(
                f"| {run.name} | {each.suite}{variants} | `{each.tests}` | {each.kind} | {each.reason} |"
            )
    return "\n".join([_HEAD, *rows, "", "## Why not", "", *reasons, ""])
