# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Logical → physical ids and their count: each alone, both in turn, and both in one pass."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import torch

from expert_maps import generate_placement
from harness.bench.npu import peers
from harness.bench.npu.checking import require_count, require_equal
from harness.bench.npu.inputs import Case, Family, Implementation, top_ids
from vllm_ascend_moe.npu_ops import ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps import Placement
    from harness.bench.npu.devices import Kind
    from harness.bench.npu.inputs import Outputs, Run, Tensors
    from harness.bench.npu.models import Model


@functools.lru_cache(maxsize=8)
def _placement(model: Model) -> Placement:
    return generate_placement(
        "ring",
        num_experts=model.num_experts,
        ep_size=model.ep_size,
        num_redundant_experts=model.redundant,
    )


class Mapping(Family):
    """What maps or counts. The outputs are the physical ids, the counts, or both, in this order."""

    maps = True
    records = True
    turns = False

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return ids, the maps and counters at zero."""
        placement = _placement(case.model)
        table = placement.routing_table(0, 0) if self.turns else placement.log2phy(0, 0)[None]
        return {
            "ids": top_ids(case, case.model.num_experts),
            "table": torch.from_numpy(table.copy()),
            "log2phy": torch.from_numpy(placement.log2phy(0, 0).copy()),
            "slots": torch.from_numpy(placement.logical_to_physical[0].copy()).long(),
            "count": torch.from_numpy(placement.replica_count[0].copy()).long(),
            "load": torch.zeros(case.model.num_physical, dtype=torch.int32),
        }

    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Go through tokens and counts in NumPy, whose indexing is not torch's."""
        ids, table = tensors["ids"].numpy(), tensors["table"].numpy()
        physical = ids
        if self.maps:
            physical = ids.copy()
            for row in range(len(table)):
                physical[row :: len(table)] = table[row][ids[row :: len(table)]]
        outputs = [torch.from_numpy(physical)] if self.maps else []
        if self.records:
            load = np.zeros(case.model.num_physical, dtype=np.int32)
            for column in range(physical.shape[1]):
                unique, counts = np.unique(physical[:, column], return_counts=True)
                load[unique] += counts.astype(np.int32)
            outputs.append(torch.from_numpy(load))
        return tuple(outputs)

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:  # noqa: ARG002
        """Compare exactly; ids are of the dtype that came in."""
        names = [name for name, there in (("physical", self.maps), ("load", self.records)) if there]
        require_count(found, names)
        for name, mine, theirs in zip(names, found, wanted, strict=True):
            require_equal(name, mine, theirs)

    def bytes_moved(self, case: Case) -> int:
        """Read int32 ids, write int32 ids; a table is read, counters are read and written."""
        physical = case.model.num_physical
        table = case.model.num_experts * (
            _placement(case.model).routing_table(0, 0).shape[0] if self.turns else 1
        )
        moved = 4 * case.entries + (4 * (case.entries + table) if self.maps else 0)
        return moved + (8 * physical if self.records else 0)


class Map(Mapping):
    """Only the map."""

    op = "map"
    about = "logical ids int32 [T, K] → physical ids, by a log2phy"
    records = False

    def implementations(self, kind: Kind) -> list[Implementation]:  # noqa: ARG002 - the same everywhere
        """Return the op and the two lookups that torch offers."""
        return [
            Implementation("torch", "ops.map_to_physical, which keeps −1", _map, serves=True),
            Implementation("indexing", "log2phy[ids]", _map_by(_indexing), is_peer=True),
            Implementation("index_select", "log2phy.index_select", _map_by(_index_select), is_peer=True),
        ]


class Record(Mapping):
    """Only the count."""

    op = "record"
    about = "ids int32 [T, K], added to counters int32 [P]"
    maps = False

    def implementations(self, kind: Kind) -> list[Implementation]:  # noqa: ARG002
        """Return the op and bincount."""
        return [
            Implementation("torch", "ops.record_load, a scatter_add that skips −1", _record, serves=True),
            Implementation("bincount", "load += bincount(ids)", _bincount, is_peer=True),
        ]


class MapRecord(Mapping):
    """Both, by a log2phy."""

    op = "map_record"
    about = "logical ids int32 [T, K] → physical ids, counted, by a log2phy"

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return both ops in turn, both in one pass, and what is written elsewhere."""
        return [
            *_by_log2phy(kind),
            Implementation("indexing", "log2phy[ids], then bincount", _both_by(_indexing), is_peer=True),
            Implementation(
                "index_select", "log2phy.index_select, then bincount", _both_by(_index_select), is_peer=True
            ),
            *peers.map_and_record(kind),
        ]


class MapRecordTurns(Mapping):
    """Both, with copies that take turns."""

    op = "map_record_turns"
    about = "as map_record, but an expert's copies take turns by token: a table of several rows"
    turns = True

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return both ops in turn and in one pass, by this project's table and by vLLM's."""
        found = [
            *(dataclasses.replace(one, serves=False) for one in _by_log2phy(kind)),
            Implementation(
                "turns", "ops.take_turns by vLLM's tables, then ops.record_load", _turns, serves=kind != "cpu"
            ),
        ]
        if kind == "cpu":
            about = "ops.take_turns_and_record, a kernel for a CPU"
            found.append(Implementation("turns one pass", about, _turns_at_once, serves=True))
        about = "table[token % rows, ids], then bincount"
        return [*found, Implementation("indexing", about, _both_by(_table_indexing), is_peer=True)]


def _by_log2phy(kind: Kind) -> list[Implementation]:
    both = "ops.map_to_physical, then ops.record_load"
    if kind != "cpu" and importlib.util.find_spec("triton") is None:
        return [Implementation("torch", both, _both, serves=True)]
    about = f"ops.map_and_record, a {'kernel for a CPU' if kind == 'cpu' else 'Triton kernel'}"
    return [
        Implementation("torch", both, _both),
        Implementation("one pass", about, _at_once, serves=True),
    ]


def _map(_: Case, tensors: Tensors) -> Run:
    ids, table = tensors["ids"], tensors["table"]
    return lambda: (ops.map_to_physical(ids, table),)


def _record(_: Case, tensors: Tensors) -> Run:
    ids, load = tensors["ids"], tensors["load"].clone()

    def run() -> Outputs:
        ops.record_load(load, ids)
        return (load,)

    return run


def _bincount(_: Case, tensors: Tensors) -> Run:
    ids, load = tensors["ids"], tensors["load"].clone()
    return lambda: (load.add_(torch.bincount(ids.view(-1), minlength=len(load))),)


def _both(_: Case, tensors: Tensors) -> Run:
    ids, table, load = tensors["ids"], tensors["table"], tensors["load"].clone()

    def run() -> Outputs:
        physical = ops.map_to_physical(ids, table)
        ops.record_load(load, physical)
        return physical, load

    return run


def _at_once(_: Case, tensors: Tensors) -> Run:
    ids, table, load = tensors["ids"], tensors["table"], tensors["load"].clone()
    return lambda: (ops.map_and_record(ids, table, load), load)


def _turns(_: Case, tensors: Tensors) -> Run:
    ids, slots, count, load = (tensors[name] for name in ("ids", "slots", "count", "load"))
    load = load.clone()

    def run() -> Outputs:
        physical = ops.take_turns(ids, slots, count)
        ops.record_load(load, physical)
        return physical, load

    return run


def _turns_at_once(_: Case, tensors: Tensors) -> Run:
    ids, slots, count, load = (tensors[name] for name in ("ids", "slots", "count", "load"))
    load = load.clone()
    return lambda: (ops.take_turns_and_record(ids, slots, count, load), load)


# What people write. These take ids to be there: −1 would be the last expert's.


def _indexing(tensors: Tensors) -> torch.Tensor:
    return tensors["log2phy"][tensors["ids"]]


def _index_select(tensors: Tensors) -> torch.Tensor:
    ids = tensors["ids"]
    return tensors["log2phy"].index_select(0, ids.view(-1)).view_as(ids)


def _table_indexing(tensors: Tensors) -> torch.Tensor:
    ids, table = tensors["ids"], tensors["table"]
    row = torch.arange(len(ids), device=ids.device) % len(table)
    return table[row.unsqueeze(1), ids.long()]


def _map_by(lookup: Callable[[Tensors], torch.Tensor]) -> Callable[[Case, Tensors], Run]:
    return lambda _, tensors: lambda: (lookup(tensors),)


def _both_by(lookup: Callable[[Tensors], torch.Tensor]) -> Callable[[Case, Tensors], Run]:
    def prepare(_: Case, tensors: Tensors) -> Run:
        load = tensors["load"].clone()

        def run() -> Outputs:
            physical = lookup(tensors)
            load.add_(torch.bincount(physical.view(-1), minlength=len(load)))
            return physical, load

        return run

    return prepare
