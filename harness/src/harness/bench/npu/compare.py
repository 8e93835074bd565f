# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A run against a baseline: silence is not a pass. Loads no torch.

pytest-benchmark's own comparison lets a benchmark pass that is no longer there, so it is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Verdict = Literal["same", "faster", "regression", "no baseline", "vanished", "failed"]
BAD: frozenset[Verdict] = frozenset({"regression", "no baseline", "vanished", "failed"})
DEFAULT_THRESHOLD = 1.5


class OtherDeviceError(ValueError):
    """Baseline and run are of different devices, or of different settings: their times say nothing together."""


@dataclass(frozen=True)
class Row:
    """One benchmark in both.

    Attributes:
        name: the benchmark's.
        baseline_us: median before, None where there was none.
        current_us: median now, None where there is none.
        verdict: what came of it.
        detail: what went wrong, where it is known.
    """

    name: str
    baseline_us: float | None
    current_us: float | None
    verdict: Verdict
    detail: str = ""

    @property
    def ratio(self) -> float | None:
        """The current time over the baseline's; above 1 is slower."""
        if self.baseline_us is None or self.current_us is None:
            return None
        return self.current_us / self.baseline_us

    @property
    def is_bad(self) -> bool:
        """Whether the comparison fails by it."""
        return self.verdict in BAD


def require_same_device(current: Mapping[str, Any], baseline: Sequence[Mapping[str, Any]]) -> None:
    """Require that a baseline is of this device, measured with as many threads.

    Args:
        current: `device` and `omp_num_threads` of the run, or a record of it.
        baseline: all records of the baseline.

    Raises:
        OtherDeviceError: a record is not.
    """
    for key in ("device", "omp_num_threads"):
        for record in baseline:
            if record[key] != current[key]:
                msg = (
                    f"the baseline's {key} is {record[key]} ({record['benchmark']}); expected {current[key]}"
                )
                raise OtherDeviceError(msg)


def compare(
    current: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    *,
    threshold: float = DEFAULT_THRESHOLD,
    expected: Callable[[Mapping[str, Any]], bool] = lambda _: True,
) -> list[Row]:
    """Compare medians, name by name.

    Args:
        current: records of this run.
        baseline: records that were kept.
        threshold: a ratio above it is a regression; one below its inverse is called faster.
        expected: whether a record of the baseline should be in this run; a selection leaves some out.

    Returns:
        A row for each benchmark of the run and each that is expected of it, in the baseline's order.

    Raises:
        OtherDeviceError: see `require_same_device`.
    """
    if current:
        require_same_device(current[0], baseline)
    now = {record["benchmark"]: record for record in current}
    before = {record["benchmark"]: record for record in baseline if expected(record)}
    rows = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        old_us = old["median_us"] if old is not None and old["status"] == "ok" else None
        if new is None:
            rows.append(Row(name, old_us, None, "vanished"))
        elif new["status"] != "ok":
            rows.append(Row(name, old_us, None, "failed", f"{new['status']}: {new.get('detail', '')}"))
        elif old_us is None:
            rows.append(Row(name, None, new["median_us"], "no baseline"))
        else:
            ratio = new["median_us"] / old_us
            slow, fast = ratio > threshold, ratio < 1 / threshold
            verdict: Verdict = "regression" if slow else "faster" if fast else "same"
            rows.append(Row(name, old_us, new["median_us"], verdict))
    return rows


def failures(rows: Sequence[Row]) -> dict[Verdict, int]:
    """Return how many rows fail, by verdict."""
    return {
        verdict: count for verdict in sorted(BAD) if (count := sum(row.verdict == verdict for row in rows))
    }
