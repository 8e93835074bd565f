# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Logical → physical ids and their count: each alone, both in turn, and both in one pass."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from functools import partial
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

    Step = Callable[[Tensors], Outputs | torch.Tensor]


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
    """Only the map: logical ids int32 [T, K] → physical ids, by a log2phy."""

    op = "map"
    records = False

    def implementations(self, kind: Kind) -> list[Implementation]:  # noqa: ARG002 - the same everywhere
        """Return the op and the two lookups that torch offers."""
        return [
            _serving("torch", "ops.map_to_physical, which keeps −1", _map),
            _peer("indexing", "log2phy[ids]", _indexing),
            _peer("index_select", "log2phy.index_select", _index_select),
        ]


class Record(Mapping):
    """Only the count: ids int32 [T, K], added to counters int32 [P]."""

    op = "record"
    maps = False

    def implementations(self, kind: Kind) -> list[Implementation]:  # noqa: ARG002
        """Return the op and bincount."""
        return [
            _serving("torch", "ops.record_load, a scatter_add that skips −1", _record),
            _peer("bincount", "load += bincount(ids)", lambda tensors: _bincount(tensors, tensors["ids"])),
        ]


class MapRecord(Mapping):
    """Both, by a log2phy: logical ids int32 [T, K] → physical ids, counted."""

    op = "map_record"

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return both ops in turn, both in one pass, and what is written elsewhere."""
        return [
            *_by_log2phy(kind),
            _peer("indexing", "log2phy[ids], then bincount", _counted(_indexing)),
            _peer("index_select", "log2phy.index_select, then bincount", _counted(_index_select)),
            *peers.map_and_record(kind),
        ]


class MapRecordTurns(Mapping):
    """Both, with copies that take turns by token: a table of several rows."""

    op = "map_record_turns"
    turns = True

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return both ops in turn and in one pass, by this project's table and by vLLM's."""
        found = [replace(one, serves=False) for one in _by_log2phy(kind)]
        found.append(_serving("turns", "ops.take_turns by vLLM's tables, then ops.record_load", _turns))
        if kind == "cpu":
            found[-1] = replace(found[-1], serves=False)
            about = "ops.take_turns_and_record, a kernel for a CPU"
            found.append(_serving("turns one pass", about, _turns_at_once))
        return [
            *found,
            _peer("indexing", "table[token % rows, ids], then bincount", _counted(_table_indexing)),
        ]


def _prepare(step: Step, _: Case, tensors: Tensors) -> Run:
    """Prepare a step, which adds to counters of its own."""
    return partial(step, {**tensors, "load": tensors["load"].clone()})


def _serving(name: str, about: str, step: Step) -> Implementation:
    return Implementation(name, about, partial(_prepare, step), serves=True)


def _peer(name: str, about: str, step: Step) -> Implementation:
    return Implementation(name, about, partial(_prepare, step), is_peer=True)


def _by_log2phy(kind: Kind) -> list[Implementation]:
    both = _serving("torch", "ops.map_to_physical, then ops.record_load", _both)
    if kind != "cpu" and importlib.util.find_spec("triton") is None:
        return [both]
    about = f"ops.map_and_record, a {'kernel for a CPU' if kind == 'cpu' else 'Triton kernel'}"
    return [replace(both, serves=False), _serving("one pass", about, _at_once)]


def _map(tensors: Tensors) -> torch.Tensor:
    return ops.map_to_physical(tensors["ids"], tensors["table"])


def _record(tensors: Tensors) -> torch.Tensor:
    ops.record_load(tensors["load"], tensors["ids"])
    return tensors["load"]


def _both(tensors: Tensors) -> Outputs:
    physical = _map(tensors)
    ops.record_load(tensors["load"], physical)
    return physical, tensors["load"]


def _at_once(tensors: Tensors) -> Outputs:
    return ops.map_and_record(tensors["ids"], tensors["table"], tensors["load"]), tensors["load"]


def _turns(tensors: Tensors) -> Outputs:
    physical = ops.take_turns(tensors["ids"], tensors["slots"], tensors["count"])
    ops.record_load(tensors["load"], physical)
    return physical, tensors["load"]


def _turns_at_once(tensors: Tensors) -> Outputs:
    ids, slots, count, load = (tensors[name] for name in ("ids", "slots", "count", "load"))
    return ops.take_turns_and_record(ids, slots, count, load), load


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


def _bincount(tensors: Tensors, ids: torch.Tensor) -> torch.Tensor:
    load = tensors["load"]
    return load.add_(torch.bincount(ids.view(-1), minlength=len(load)))


def _counted(lookup: Callable[[Tensors], torch.Tensor]) -> Step:
    def step(tensors: Tensors) -> Outputs:
        physical = lookup(tensors)
        return physical, _bincount(tensors, physical)

    return step
