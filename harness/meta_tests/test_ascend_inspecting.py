# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Tables are read where tokens are routed by them."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import torch

from harness.ascend.inspecting import Inspector, _find, _tables

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

LOGICAL, PHYSICAL = torch.tensor([0, 1, -1, -1]), torch.tensor([0, 1, 2, -1, -1, -1])


def inspector(**modules: torch.nn.Module) -> Inspector:
    """Make the worker extension of a model with one layer of these nested modules."""
    model = torch.nn.Module()
    outer = model
    for name in ("layers", "1", "mlp"):
        outer.add_module(name, torch.nn.Module())
        outer = outer.get_submodule(name)
    for name, module in modules.items():
        outer.add_module(name, module)
        outer = module
    found = Inspector()
    vars(found)["model_runner"] = SimpleNamespace(model=model)
    return found


def holding(**values: torch.Tensor | None) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, value in values.items():
        setattr(module, name, value)
    return module


def shifted(found: Inspector) -> list[int]:
    """Return what a layer's map becomes with the tables of another layer, as the mutant writes it."""
    ((_, parts),) = list(found._moe_layers())
    vars(found)["_undo"] = []
    other = [holding(_expert_map=LOGICAL.flip(0), log2phy=torch.tensor([3, 2, 1, 0]))]
    found._shift_layers([parts, other])
    written: list[int] = parts[1]._expert_map.tolist()
    return written


def test_the_map_that_tokens_go_by_is_beside_log2phy() -> None:
    weights = {"w13_weight": torch.zeros(3, 2, 2), "w2_weight": torch.zeros(3, 2, 2)}
    found = inspector(
        experts=holding(_expert_map=LOGICAL.clone(), log2phy=torch.tensor([0, 1, 2, 3])),
        routed_experts=holding(_expert_map=PHYSICAL.clone(), **weights),
    )
    ((index, parts),) = list(found._moe_layers())
    assert index == 1
    assert shifted(found) == LOGICAL.flip(0).tolist()
    assert parts[0]._expert_map.tolist() == PHYSICAL.tolist()


def test_one_module_may_hold_all() -> None:
    layer = holding(_expert_map=LOGICAL, log2phy=None)
    held = _find([layer, torch.nn.Module()], "ascend_expert_map", "_expert_map", "expert_map")
    assert held is not None
    assert held.tolist() == LOGICAL.tolist()


def test_the_second_runners_table_says_which_expert_is_where(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four experts, six slots on two ranks; a row a token.
    routes = torch.tensor([[0, 1, 2, 3], [4, 1, 5, 3]], dtype=torch.int32)
    parallel = ModuleType("vllm.distributed.parallel_state")
    vars(parallel)["get_ep_group"] = lambda: SimpleNamespace(rank_in_group=1)
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, parallel.__name__, parallel)
    layer = holding(w13_weight=torch.zeros(3, 2, 2), expert_map=PHYSICAL.clone())
    layer.router = SimpleNamespace(eplb_state=SimpleNamespace(expert_replica_routing_table=routes))  # type: ignore[assignment]
    found = inspector(routed_experts=layer)
    ((_, parts),) = list(found._moe_layers())
    assert _tables(parts, None) == {
        "expert_map": [1, -1, 2, 0],
        "log2phy": [0, 1, 2, 3],
        "routes": [[0, 4], [1], [2, 5], [3]],
    }
    # What the mutants change is what tokens go by.
    assert found.damage("log2phy")
    assert routes.tolist() == [[3, 0, 1, 2], [3, 4, 1, 5]]
    found.repair()
    assert routes.tolist() == [[0, 1, 2, 3], [4, 1, 5, 3]]
    layer.router = None  # type: ignore[assignment]
    assert _tables(parts, None) == {"expert_map": PHYSICAL.tolist(), "log2phy": None}
    assert _tables(parts, LOGICAL) == {"expert_map": LOGICAL.tolist(), "log2phy": None}


def test_each_rank_writes_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        monkeypatch.setattr(Inspector, "inspect_layers", lambda _, rank=rank: {"ep_rank": rank, "layers": []})
        Inspector().write_inspection(str(tmp_path))
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank-{rank}.json").read_text()) == {"ep_rank": rank, "layers": []}
