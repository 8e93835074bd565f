# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Two files that `hardware` wrote, held side by side: whether both servers served the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.hardware import ReportError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Of a probability's logarithm: sums are taken in another order, in 32 or in 16 bits.
_LARGEST_DELTA = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
_SHOWN = 5


@dataclass
class Comparison:
    """Two reports side by side.

    Attributes:
        lines: what was compared, and how it came out.
        differences: what is not the same; empty where both served the same.
    """

    lines: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def compare(one: dict[str, Any], other: dict[str, Any]) -> Comparison:
    """Compare two reports of the same request.

    Raises:
        ReportError: they are of different requests, models or maps, or one of them is not whole.
    """
    try:
        return _compare(one, other)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        msg = (
            f"a report is not as `vllm-ascend-moe doctor collect` writes it ({type(error).__name__}: {error})"
        )
        raise ReportError(msg) from error


def _compare(one: dict[str, Any], other: dict[str, Any]) -> Comparison:
    for name in ("model", "request"):
        mine, theirs = dict(one[name]), dict(other[name])
        mine.pop("name", None)
        theirs.pop("name", None)
        if mine != theirs:
            keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
            said = "; ".join(f"{key} {mine.get(key)} against {theirs.get(key)}" for key in keys)
            msg = f"the reports are of another {name} each: {said}; expected the same in both"
            raise ReportError(msg)
    found = Comparison([_said(one), _said(other)])
    _compare_placements(one, other, found)
    _compare_checksums(one, other, found)
    _compare_tokens(one, other, found)
    return found


def _said(report: dict[str, Any]) -> str:
    known = report.get("versions", {})
    with_versions = ", ".join(
        f"{name} {known[name]}" for name in ("vllm", "vllm-ascend", "torch-npu") if known.get(name)
    )
    what = "emulated, not hardware" if report.get("emulated") else "not emulated"
    return f"{report.get('chip') or report.get('platform', {}).get('kind')}, {what}: {with_versions}"


def _compare_placements(one: dict[str, Any], other: dict[str, Any], found: Comparison) -> None:
    for report in (one, other):
        for rank in report["ranks"]:
            found.differences += [
                f"rank {rank.get('ep_rank')}: {wrong}" for wrong in rank.get("wrong_slots", [])
            ]
    rows = [[rank.get("physical_to_logical") for rank in report["ranks"]] for report in (one, other)]
    if rows[0] != rows[1]:
        found.differences.append("ranks serve other placements")
    else:
        found.lines.append(f"placement: the same on {len(rows[0])} ranks")


def _compare_checksums(one: dict[str, Any], other: dict[str, Any], found: Comparison) -> None:
    differ, count = [], 0
    for mine, theirs in zip(one["ranks"], other["ranks"], strict=True):
        layers = zip(mine.get("slot_checksums", []), theirs.get("slot_checksums", []), strict=True)
        for layer, (left, right) in enumerate(layers):
            for slot, (a, b) in enumerate(zip(left, right, strict=True)):
                count += 1
                if a != b:
                    differ.append(f"layer {layer}, rank {mine.get('ep_rank')}, slot {slot}")
    found.lines.append(f"slots: {count - len(differ)} of {count} hold the same bytes")
    if differ:
        found.differences.append(f"{len(differ)} of {count} slots hold other bytes: {_few(differ)}")


def _compare_tokens(one: dict[str, Any], other: dict[str, Any], found: Comparison) -> None:
    differ = [n for n, (a, b) in enumerate(zip(one["tokens"], other["tokens"], strict=True)) if a != b]
    count = len(one["tokens"])
    # Where texts part, both choose from the same past once more, and what follows has another.
    deltas = [
        abs(a - b)
        for mine, theirs, left, right in zip(
            one["tokens"], other["tokens"], one["logprobs"], other["logprobs"], strict=True
        )
        for a, b in list(zip(left, right, strict=True))[: _common(mine, theirs) + 1]
    ]
    # What is no number is the largest.
    largest = max(deltas, default=0.0, key=lambda delta: (math.isnan(delta), delta))
    limit = _LARGEST_DELTA[one["request"]["dtype"]]
    found.lines.append(
        f"texts: {count - len(differ)} of {count} are the same; the largest difference of a log-probability until they part "
        f"is {largest:.1e} (at most {limit:g} is expected in {one['request']['dtype']})"
    )
    if differ and one["request"]["dtype"] == "float32":
        found.differences.append(f"{len(differ)} of {count} texts differ: prompts {_few(map(str, differ))}")
    if not largest <= limit:
        found.differences.append(f"a log-probability differs by {largest:.1e}; expected {limit:g} at most")


def _common(mine: list[int], theirs: list[int]) -> int:
    """Return how many tokens two texts have in common from the start on."""
    return next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), len(mine))


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")
