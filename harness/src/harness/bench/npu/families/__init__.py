# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The ops that are timed, a family each, in the order of the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.bench.npu.families.experts import GroupedMatmul, WholeMoe
from harness.bench.npu.families.gating import Gating
from harness.bench.npu.families.mapping import Map, MapRecord, MapRecordTurns, Record
from harness.bench.npu.families.rows import DynamicQuant, Finalize, Permute, Swiglu

if TYPE_CHECKING:
    from harness.bench.npu.inputs import Family

_ALL = (
    Gating,
    Map,
    Record,
    MapRecord,
    MapRecordTurns,
    Permute,
    Finalize,
    Swiglu,
    DynamicQuant,
    GroupedMatmul,
    WholeMoe,
)
FAMILIES: dict[str, Family] = {family.op: family() for family in _ALL}
