# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Each op of the MoE layer at each shape: checked against its reference, then timed beside its peers, in turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.bench.npu.bench import Bench, Point


def test_op(point: Point, benchmark: Any, npu_bench: Bench, faults: dict[str, str]) -> None:  # noqa: ANN401
    """What differs from the reference gets no time, and fails; the others are timed all the same."""
    ready = npu_bench.ready(point.family, point.case)
    for implementation, fault in ready.faults.items():
        faults[f"{point.name}: {implementation.name}"] = fault
    if not any(one.serves for one in ready.runs):
        pytest.fail("; ".join(f"{one.name}: {fault}" for one, fault in ready.faults.items()), pytrace=False)
    benchmark.extra_info |= point.describe() | npu_bench.time(point, benchmark)
    if ready.faults:
        pytest.fail("; ".join(f"{one.name}: {fault}" for one, fault in ready.faults.items()), pytrace=False)
