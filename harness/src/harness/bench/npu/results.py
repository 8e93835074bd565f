# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From pytest-benchmark's JSON, a file a pass, to the record of a run. Loads no torch."""

from __future__ import annotations

import statistics
from itertools import accumulate
from math import comb
from typing import TYPE_CHECKING, Any

from expert_maps.errors import FormatError
from harness.record.schema import Provenance, RunRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Row = dict[str, Any]

_DESCRIBED = ("op", "model", "phase", "tokens", "variant", "bytes_moved", "flops", "serves", "calls")
_CONFIDENCE = 0.95


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the values between which the median lies with 95 % confidence, whatever the distribution.

    Of n independent values the k-th from either end holds it but for twice the chance of fewer than k heads in n throws.
    Of fewer than six the extremes are returned, which hold it less often.
    """
    ordered, n = sorted(values), len(values)
    # By how many heads or fewer: as often as not, of so many in 2**n.
    rarely = [2 * ways <= (1 - _CONFIDENCE) * 2**n for ways in accumulate(comb(n, k) for k in range(n // 2))]
    place = max(sum(rarely) - 1, 0)
    return ordered[place], ordered[n - 1 - place]


def record(documents: Sequence[Mapping[str, Any]], **settings: Any) -> RunRecord:  # noqa: ANN401 - options, as JSON has them
    """Return the record of a run.

    Args:
        documents: pytest-benchmark's JSON of each pass, a process each, all on one device.
        settings: the run's options.

    Raises:
        FormatError: there is none, or one is of another benchmark.
    """
    if not documents or any("npu_ops" not in document for document in documents):
        msg = "pytest-benchmark's JSON has no npu_ops; expected that of pytest harness/bench"
        raise FormatError(msg)
    said = [document["npu_ops"] for document in documents]
    passes: dict[str, list[Mapping[str, Any]]] = {}
    for document in documents:
        for one in document["benchmarks"]:
            passes.setdefault(one["param"], []).append(one)
    faults = {name: text for one in said for name, text in one["faults"].items()}
    return RunRecord(
        kind="npu_ops",
        name=said[0]["device"],
        settings={"passes": len(documents), **settings},
        provenance=Provenance.model_validate(said[0]["provenance"]),
        proof={
            "checked": "each implementation against its reference before any time; inputs compared by content",
            "clock": sorted({one["extra_info"]["clock"] for found in passes.values() for one in found}),
            "pinned": said[0]["pinned"],
            "faults": faults,
            "left_out": said[0]["left_out"],
        },
        performance={
            "rows": [_row(name, found, faults) for name, found in passes.items()],
            "abouts": _abouts(one for found in passes.values() for one in found),
        },
    )


def known(documents: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the names of all benchmarks that there are, chosen or not."""
    return {name for document in documents for name in document["npu_ops"]["all"]}


def _abouts(benchmarks: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in benchmarks:
        found.setdefault(one["extra_info"]["op"], {}).update(one["extra_info"]["implementations"])
    return found


def _row(name: str, passes: Sequence[Mapping[str, Any]], faults: Mapping[str, str]) -> Row:
    """Return a benchmark's row: medians, their intervals, each pass's against the yardstick, ratios to the fastest peer."""
    info = passes[0]["extra_info"]
    rounds = [_rounds(one) for one in passes]
    yardsticks = [one["extra_info"]["yardstick"] for one in passes]
    found: dict[str, Any] = {}
    for implementation in rounds[0]:
        each = [one[implementation] for one in rounds]
        found[implementation] = {
            **_times([value for one in each for value in one]),
            # What machine and day do to both cancels: this is what is compared with other runs.
            "to_yardstick": [_ratio(*pair) for pair in zip(each, yardsticks, strict=True)],
        }
    for key, text in faults.items():
        benchmark, _, implementation = key.rpartition(": ")
        if benchmark == name:
            found[implementation] = {"fault": text}
    peers = [one for one in rounds[0] if info["implementations"][one]["is_peer"]]
    if peers:
        fastest = min(peers, key=lambda one: found[one]["median_us"])
        for own in set(rounds[0]) - set(peers):
            pairs = [pair for one in rounds for pair in zip(one[fastest], one[own], strict=True)]
            found[own]["beside"] = _beside(fastest, [theirs / ours for theirs, ours in pairs])
    yardstick = statistics.median(value for one in yardsticks for value in one)
    return {
        "benchmark": name,
        **{key: info[key] for key in _DESCRIBED},
        "yardstick_us": _digits(yardstick * 1e6),
        "implementations": found,
    }


def _rounds(one: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return implementation → seconds a call, by round."""
    info = one["extra_info"]
    return {info["serves"]: [value / info["calls"] for value in one["stats"]["data"]], **info["turns"]}


def _times(seconds: Sequence[float]) -> dict[str, Any]:
    low, high = median_interval(seconds)
    figures = {"median_us": statistics.median(seconds), "low_us": low, "high_us": high}
    return {**{name: _digits(value * 1e6) for name, value in figures.items()}, "rounds": len(seconds)}


def _beside(peer: str, ratios: Sequence[float]) -> dict[str, Any]:
    low, high = median_interval(ratios)
    figures = {"times_faster": statistics.median(ratios), "low": low, "high": high}
    return {"peer": peer, **{name: _digits(value) for name, value in figures.items()}}


def _ratio(seconds: Sequence[float], yardstick: Sequence[float]) -> float:
    return _digits(statistics.median(mine / fixed for mine, fixed in zip(seconds, yardstick, strict=True)))


def _digits(value: float) -> float:
    """Keep four digits: more would be noise, and make every run's file another one."""
    return float(f"{value:.4g}")
