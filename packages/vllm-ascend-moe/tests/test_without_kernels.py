# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is not in every installation: Numba, and torch's grouped product. Without them the twins and a loop serve."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vllm_ascend_moe.npu_ops.kernels import no_kernels
from vllm_ascend_moe.npu_ops.ops import npu_grouped_matmul

if TYPE_CHECKING:
    from collections.abc import Callable

# Everything that has a kernel, and one layer as it serves, in a process whose Numba is as the first line makes it.
_SERVE = """
import json, logging, sys
sys.modules["numba"] = None if {blocked} else __import__("numba")
logging.basicConfig(stream=sys.stderr, format="%(message)s")
import torch
from vllm_ascend_moe.npu_ops import ops
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts
from vllm_ascend_moe.npu_ops.routing import RoutingConfig, select_experts
torch.manual_seed(0)
grid = torch.randint(-9, 9, (33, 16)).float()
routing = RoutingConfig(16, 4)
weights, ids = select_experts(grid, routing)
load, turns = torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.int64)
table = torch.arange(16, dtype=torch.int32).repeat(3, 1)
table[1, :4] += 16
physical = ops.map_and_record(ids, table, load)
slots = torch.stack([torch.arange(16), torch.arange(16)], 1)
slots[:4, 1] += 16
count = torch.where(torch.arange(16) < 4, 2, 1)
turned = ops.take_turns_and_record(ids, slots, count, turns)
# Powers of two in all weights: sums are exact in any order.
experts = ExpertWeights(torch.full((16, 16, 32), 0.25), torch.full((16, 16, 16), 0.5))
output = apply_experts(grid, torch.full_like(weights, 0.25), ids, experts)
print(json.dumps([x.tolist() for x in (weights, ids, physical, load, turned, turns, output)]))
print("kernels" if "vllm_ascend_moe.npu_ops.kernels._jit" in sys.modules else "twins")
"""


def serve(*, blocked: bool) -> tuple[list[list[float]], str, list[str]]:
    code = _SERVE.format(blocked=blocked)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    numbers, way = done.stdout.splitlines()
    return json.loads(numbers), way, [line for line in done.stderr.splitlines() if "kernels" in line]


@pytest.mark.skipif(no_kernels() is not None, reason="Numba is not installed")
def test_without_numba_the_twins_serve_the_same_and_it_is_said_once() -> None:
    by_kernels, way, said = serve(blocked=False)
    assert (way, said) == ("kernels", [])
    by_twins, way, said = serve(blocked=True)
    assert way == "twins"
    for mine, theirs in zip(by_twins, by_kernels, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-6, atol=1e-6)
    (line,) = said
    assert line.startswith("vllm-ascend-moe serves on this CPU by plain torch, without its kernels: ")
    assert line.endswith("; install it (pip install 'vllm-ascend-moe[cpu]')")


def test_a_numba_that_cannot_be_loaded_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    reason = no_kernels()
    assert reason is not None
    assert "numba" in reason
    assert "[cpu]" in reason


def refuse(*_: object, **__: object) -> torch.Tensor:
    msg = "not on this device"
    raise NotImplementedError(msg)


def answer_wrongly(rows: torch.Tensor, matrices: torch.Tensor, **_: object) -> torch.Tensor:
    return torch.zeros(len(rows), matrices.shape[-1], dtype=rows.dtype)


@pytest.mark.parametrize("stand_in", [None, refuse, answer_wrongly])
def test_a_torch_without_a_grouped_product_is_not_asked_for_one(
    stand_in: Callable[..., torch.Tensor] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[npu_grouped_matmul.twin.__module__]
    rows, matrices = torch.randn(6, 16), torch.randn(3, 16, 32)
    options: dict[str, Any] = {
        "group_list": torch.tensor([2, 0, 4]),
        "group_list_type": 1,
        "group_type": 0,
        "split_item": 2,
    }
    (expected,) = npu_grouped_matmul([rows], [matrices], **options)
    if stand_in is None:
        monkeypatch.delattr("torch.nn.functional.grouped_mm", raising=False)
    else:
        monkeypatch.setattr("torch.nn.functional.grouped_mm", stand_in, raising=False)
    capable = frozenset(filter(module._has_grouped_mm, module._FLOATS))
    assert capable == frozenset()
    monkeypatch.setattr(module, "_AT_ONCE", capable)
    (found,) = npu_grouped_matmul([rows], [matrices], **options)
    torch.testing.assert_close(found, expected)
