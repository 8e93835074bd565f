# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A run against a kept one: silence is not a pass, and only our own code can regress. Loads no torch.

Both runs have several passes, a process each. An implementation's time is taken in units of a yardstick, a fixed piece of
torch's work that takes turns with it in the same process, because a shared machine is half as fast on some days; a pass
gives one such figure, and the median of a run's passes is compared. What seems slower is measured again, and has to seem so
twice. Simulated with the scatter of a busy machine (see the tests), a slowdown of 1.3 times is caught in 95 of 100 cases or
more, and of 100 benchmarks that did not change at most one is called slower.

Calls with cold caches scatter too much for that; they are shown and not compared.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.record.schema import Provenance, RunRecord

Own = Literal["same", "faster", "slower", "undecided", "no baseline", "vanished", "failed"]
Verdict = Own | Literal["peer faster", "peer slower"]
BAD: frozenset[str] = frozenset({"slower", "no baseline", "vanished", "failed"})
# The middle between no change and a slowdown of 1.3 times, in logarithms.
THRESHOLD = 1.15
PASSES = 5
COMPARED = ("warm", "pipelined")
# Not ours, and acting: with another one of them a slower time is nobody's fault yet.
_ACTING = ("torch", "torch_npu", "numba", "triton", "numpy")


class NotComparableError(ValueError):
    """Two runs are of different devices, settings or forms: their times say nothing together."""


@dataclass(frozen=True)
class Row:
    """One implementation of a benchmark in both runs.

    Attributes:
        name: the benchmark's, and the implementation's.
        ratio: its time over the baseline's, both in yardsticks: above 1 is slower. None where one is missing.
        verdict: what came of it.
        detail: what went wrong, where it is known.
    """

    name: str
    ratio: float | None
    verdict: Verdict
    detail: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether the comparison fails by it."""
        return self.verdict in BAD


def require_comparable(current: Provenance, baseline: RunRecord) -> None:
    """Require that a baseline is of this device, with as many threads, and has yardsticks.

    Raises:
        NotComparableError: it is not.
    """
    rows = baseline.performance.get("rows", [])
    if not rows or any("yardstick_us" not in row for row in rows):
        msg = f"the baseline {baseline.name} has no yardsticks, as records of before them; make a new one with --record"
        raise NotComparableError(msg)
    if baseline.settings.get("passes", 1) < PASSES:
        msg = f"the baseline has {baseline.settings.get('passes', 1)} passes; expected {PASSES}, for which the errors are known"
        raise NotComparableError(msg)
    kept = baseline.provenance
    for name, old, new in (
        ("device", kept.device and kept.device.name, current.device and current.device.name),
        ("number of threads", kept.threads, current.threads),
    ):
        if old != new:
            msg = f"the baseline's {name} is {old}; expected {new}, as in this run"
            raise NotComparableError(msg)


def other_versions(current: Provenance, baseline: Provenance) -> list[str]:
    """Return what acted and is another one, a line each: Python, torch, compilers, driver, CANN or CUDA."""
    pairs = {name: (baseline.versions.get(name), current.versions.get(name)) for name in _ACTING}
    pairs["Python"] = (baseline.python, current.python)
    for name in ("driver", "toolkit"):
        pairs[name] = (getattr(baseline.device, name, None), getattr(current.device, name, None))
    return [f"{name} {old or 'none'} → {new or 'none'}" for name, (old, new) in pairs.items() if old != new]


def compare(current: RunRecord, baseline: RunRecord, known: set[str]) -> list[Row]:
    """Compare each of our own implementations with itself, and each peer's with itself.

    Args:
        current: this run; part of all benchmarks may have been chosen.
        baseline: a kept run.
        known: all benchmarks that there are, chosen or not.

    Returns:
        A row for each implementation in either, in the baseline's order; peers in other versions are no failures.

    Raises:
        NotComparableError: see `require_comparable`.
    """
    require_comparable(current.provenance, baseline)
    now = {row["benchmark"]: row for row in current.performance["rows"] if row["variant"] in COMPARED}
    before = {row["benchmark"]: row for row in baseline.performance["rows"] if row["variant"] in COMPARED}
    # A benchmark none of whose implementations could be timed has no row.
    faulty = {name.rpartition(": ")[0] for name in current.proof.get("faults", {})}
    versions = other_versions(current.provenance, baseline.provenance)
    found: list[Row] = []
    for name in dict.fromkeys((*before, *now)):
        if name in now:
            new, old = (runs[name]["implementations"] if name in runs else {} for runs in (now, before))
            abouts = current.performance["abouts"].get(now[name]["op"], {})
            for one in dict.fromkeys((*old, *new)):
                is_peer = abouts.get(one, {}).get("is_peer", False)
                found.append(_row(f"{name}: {one}", new.get(one), old.get(one), versions, is_peer=is_peer))
        elif name in faulty:
            found.append(Row(name, None, "failed", "no implementation could be timed"))
        elif name not in known:
            found.append(Row(name, None, "vanished"))
    return found


def _row(
    name: str,
    new: Mapping[str, Any] | None,
    old: Mapping[str, Any] | None,
    versions: Sequence[str],
    *,
    is_peer: bool,
) -> Row:
    if new is None:
        return Row(name, None, "vanished")
    if "fault" in new:
        return Row(name, None, "failed", new["fault"])
    if old is None or "fault" in old:
        return Row(name, None, "no baseline")
    ratio = statistics.median(new["to_yardstick"]) / statistics.median(old["to_yardstick"])
    slower = ratio > THRESHOLD
    verdict: Verdict = "slower" if slower else "faster" if ratio < 1 / THRESHOLD else "same"
    if is_peer and verdict != "same":
        verdict = "peer slower" if slower else "peer faster"
    elif slower and versions:
        return Row(name, ratio, "undecided", "slower with " + ", ".join(versions))
    return Row(name, ratio, verdict)


def slower_benchmarks(rows: Sequence[Row]) -> list[str]:
    """Return the benchmarks that have to be measured again."""
    return list(dict.fromkeys(row.name.rpartition(": ")[0] for row in rows if row.verdict == "slower"))


def confirmed(first: Sequence[Row], again: Sequence[Row]) -> list[Row]:
    """Return the first comparison with what seemed slower only there as the second one has it."""
    second = {row.name: row for row in again}
    return [second.get(row.name, row) if row.verdict == "slower" else row for row in first]


def failures(rows: Sequence[Row]) -> dict[str, int]:
    """Return how many rows fail, by verdict."""
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in sorted(BAD)}
    return {verdict: count for verdict, count in counts.items() if count}
