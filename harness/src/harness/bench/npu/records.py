# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From outcomes to records: rates, ratios, the device and the environment; JSON lines in and out. Loads no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from expert_maps.errors import FormatError
from expert_maps.files import describe, read_bytes, write_text
from harness.bench.npu.environment import describe as describe_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    Record = dict[str, Any]

COPY = "copy"
FILE = "npu_ops.jsonl"
NEEDED = ("benchmark", "status", "device", "omp_num_threads", "op", "model", "tokens", "variant")
_TIMES = ("median_us", "iqr_us", "min_us", "max_us")


def complete(outcomes: Sequence[Mapping[str, Any]], device: Mapping[str, Any]) -> list[Record]:
    """Return records: outcomes with rates, ratios, the device and the environment.

    Args:
        outcomes: as `bench_ops` wrote them; those with status "ok" have times.
        device: what a record says of the device: `device` (the folder's name), `device_kind`, `device_name`.

    Returns:
        A record for each outcome, with
        gb_per_s: bytes_moved over the median time, in 10⁹ bytes,
        ratio_to_copy: gb_per_s over that of the copy, timed in this run at its start and end, the faster one,
        peer, ratio_to_peer: the fastest peer of the same case and variant, and how many times its time this
        one's time fits in it: above 1 is faster than the peer.
    """
    copies = [_rate(outcome) for outcome in outcomes if outcome["op"] == COPY and outcome["status"] == "ok"]
    copy = max(copies, default=None)
    peers: dict[tuple[object, ...], Mapping[str, Any]] = {}
    for outcome in outcomes:
        if outcome["is_peer"] and outcome["status"] == "ok":
            best = peers.get(_case(outcome))
            if best is None or outcome["median_us"] < best["median_us"]:
                peers[_case(outcome)] = outcome
    context = {**device, **describe_environment()}
    return [{**_with_rates(outcome, copy, peers.get(_case(outcome))), **context} for outcome in outcomes]


def _with_rates(outcome: Mapping[str, Any], copy: float | None, peer: Mapping[str, Any] | None) -> Record:
    if outcome["status"] != "ok":
        return dict(outcome)
    rate, median = _rate(outcome), outcome["median_us"]
    record = {**outcome, **{name: _round(outcome[name]) for name in _TIMES}, "gb_per_s": _round(rate)}
    if outcome["flops"]:
        record["gflop_per_s"] = _round(outcome["flops"] / median / 1e3)
    if copy is not None:
        record |= {"copy_gb_per_s": _round(copy), "ratio_to_copy": _round(rate / copy)}
    if peer is not None:
        record |= {"peer": peer["implementation"], "ratio_to_peer": _round(peer["median_us"] / median)}
    return record


def _rate(outcome: Mapping[str, Any]) -> float:
    """Return 10⁹ bytes a second."""
    return float(outcome["bytes_moved"] / outcome["median_us"] / 1e3)


def _case(outcome: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(outcome[name] for name in ("op", "model", "phase", "tokens", "variant"))


def _round(value: float) -> float:
    """Keep four digits: more would be noise, and make every run's file another one."""
    return float(f"{value:.4g}")


def merge(first: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the outcomes of a run with some of them replaced: the faster of two times, and any failure."""
    found = {outcome["benchmark"]: outcome for outcome in first}
    for outcome in again:
        before = found.get(outcome["benchmark"])
        both_ok = before is not None and before["status"] == outcome["status"] == "ok"
        if before is None or not both_ok or outcome["median_us"] < before["median_us"]:
            found[outcome["benchmark"]] = outcome
    return list(found.values())


def read_lines(path: Path) -> list[Record]:
    """Read JSON lines.

    Raises:
        FormatError: the file cannot be read, or a line is not a JSON object; the line is named.
    """
    lines = read_bytes(path).decode("utf-8", errors="replace").splitlines()
    found: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            msg = f"{describe(path)}: line {number} is not JSON: {error.msg}"
            raise FormatError(msg) from error
        if not isinstance(value, dict):
            msg = f"{describe(path)}: line {number} is {type(value).__name__}; expected a JSON object"
            raise FormatError(msg)
        found.append(value)
    return found


def read_records(path: Path) -> list[Record]:
    """Read records of this benchmark.

    Raises:
        FormatError: as in `read_lines`; there are none, a name stands twice, or one lacks a key that is
            compared, or a time that its status promises.
    """
    records = read_lines(path)
    names: set[str] = set()
    for number, record in enumerate(records, start=1):
        needed = (*NEEDED, "median_us") if record.get("status") == "ok" else NEEDED
        absent = [key for key in needed if key not in record]
        if absent:
            msg = f"{describe(path)}: record {number} has no {', '.join(absent)}; expected a record of npu_bench"
            raise FormatError(msg)
        if record["status"] == "ok" and not (
            isinstance(record["median_us"], (int, float)) and record["median_us"] > 0
        ):
            msg = f"{describe(path)}: record {number}: median_us is {record['median_us']!r}; expected a time above 0"
            raise FormatError(msg)
        if record["benchmark"] in names:
            msg = f"{describe(path)}: {record['benchmark']} stands twice; expected each benchmark once"
            raise FormatError(msg)
        names.add(record["benchmark"])
    if not records:
        msg = f"{describe(path)}: holds no record"
        raise FormatError(msg)
    return records


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records, whole or not at all.

    Raises:
        FormatError: the file cannot be written.
    """
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
