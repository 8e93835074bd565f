# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A target in a process of its own: what it dies of is a finding too, with the input that it had."""

from __future__ import annotations

import mmap
import multiprocessing
import resource
import signal
import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from harness.fuzz import corpus, documents
from harness.fuzz.judging import Finding, each_kind, judge, limit_memory, prepare
from harness.fuzz.mutations import mutate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from harness.fuzz.targets import Target

# Where the child notes the input that it is at: the length, then the bytes.
_NOTE = 2**20
# Inputs that were read are mutated further.
_MOST_KEPT = 500
# Hypothesis makes some tens of documents in a second, where mutations are thousands.
_ONE_MADE_IN = 50
# After so many findings of a target there is enough to mend.
_MOST_FINDINGS = 200


@dataclass
class Counts:
    """What came of a target.

    Attributes:
        kept: inputs of the corpus and seeds.
        mutated: mutations that were tried.
        made: documents that Hypothesis made.
        read: of all these, what was read; the rest was refused as documented.
        peak: bytes that the process took at most beyond those at its start.
        findings: by kind.
    """

    kept: int = 0
    mutated: int = 0
    made: int = 0
    read: int = 0
    peak: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)


def run(target: Target, inputs: int, seed: int, seconds: float) -> Counts:
    """Try a target's kept inputs, then as many new ones, for no longer than some seconds."""
    prepare(target)  # here: what it imports is imported once for all targets
    note = mmap.mmap(-1, _NOTE)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    # As a daemon it ends with this process.
    child = context.Process(target=_child, args=(target, inputs, seed, seconds, note, there), daemon=True)
    child.start()
    there.close()
    try:
        found: Counts = here.recv()
    except EOFError:
        child.join()
        length = int.from_bytes(note[:8], "little")
        text = f"the process ended with {child.exitcode}"
        name = f"died {-(child.exitcode or 0)}"
        finding = Finding(target.name, name, text, bytes(note[8 : 8 + length]))
        return Counts(findings={f"{target.name} {name}": finding})
    child.join()
    return found


def _child(
    target: Target, inputs: int, seed: int, seconds: float, note: mmap.mmap, there: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    counts = Counts()
    limit_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    findings: list[Finding] = []
    for kind, content in _inputs(target, inputs, seed, findings):
        note[:8] = len(content).to_bytes(8, "little")
        note[8 : 8 + len(content)] = content
        judged = judge(target, content)
        setattr(counts, kind, getattr(counts, kind) + 1)
        counts.read += judged.is_read
        if judged.finding is not None:
            findings.append(judged.finding)
        if len(findings) > _MOST_FINDINGS or time.monotonic() > end:
            break
    counts.findings = each_kind(iter(findings))
    counts.peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    there.send(counts)
    there.close()


def _inputs(target: Target, count: int, seed: int, findings: list[Finding]) -> Iterator[tuple[str, bytes]]:
    """Yield inputs, each with the name of the number that it is counted by."""
    pool = [*target.seeds, *corpus.read(target.name)]
    for content in pool:
        yield "kept", content
    random = Random(f"{seed} {target.name}")  # noqa: S311 - no secrets
    made = documents.make(target, count // _ONE_MADE_IN, seed) if target.is_json else iter(())
    fixed = len(pool)
    for number in range(count):
        if number % _ONE_MADE_IN == 0 and (document := next(made, None)) is not None:
            yield "made", document
            continue
        known = len(findings)
        content = mutate(random.choice(pool), random, pool)
        yield "mutated", content
        # What is mutated further has changes on changes; what failed would fail again.
        if len(findings) == known and random.random() < 0.02:  # noqa: PLR2004 - a chance
            if len(pool) < _MOST_KEPT:
                pool.append(content)
            elif fixed < _MOST_KEPT:
                pool[random.randrange(fixed, _MOST_KEPT)] = content
