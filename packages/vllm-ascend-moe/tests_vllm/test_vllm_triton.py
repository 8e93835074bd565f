# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel beside plain torch: interpreted on a CPU, on a GPU where there is one; and compiled without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

COMPARED = """
import itertools, os, torch
from vllm_ascend_moe.npu_ops.kernels.triton_map_and_record import can_add_to, map_and_record
from vllm_ascend_moe.npu_ops.ops import map_to_physical, record_load

torch.set_default_device(os.environ["DEVICE"])
generator = torch.Generator(os.environ["DEVICE"]).manual_seed(0)
sizes = [(0, 2, 7, 3), (1, 8, 256, 1), (5, 2, 7, 3), (300, 8, 256, 32), (1100, 3, 16, 5)]
for (tokens, k, experts, rows), dtype in itertools.product(sizes, (torch.int32, torch.int64)):
    ids = torch.randint(-1, experts, (tokens, k), generator=generator).to(dtype)
    table = torch.randint(0, 300, (rows, experts), generator=generator).to(torch.int32)
    for valid in (None, 0, tokens // 2, torch.tensor([tokens // 3])):
        load = torch.arange(300, dtype=torch.int32)
        wanted_load = load.clone()
        found = map_and_record(ids, table, load, token_offset=7, num_tokens=valid)
        wanted = map_to_physical(ids, table, token_offset=7)
        record_load(wanted_load, wanted, num_tokens=valid)
        assert found.dtype == dtype and torch.equal(found, wanted), (tokens, k, valid)
        assert torch.equal(load, wanted_load), (tokens, k, valid)
# What does not exist is neither read nor counted.
load = torch.zeros(2, dtype=torch.int32)
found = map_and_record(torch.tensor([[0, 9], [1, 2]]), torch.tensor([[1, 5, 0]]), load)
assert found.tolist() == [[1, 9], [5, 0]] and load.tolist() == [1, 1]
assert not can_add_to(torch.zeros(3, dtype=torch.int64)) and not can_add_to(load[::2].expand(3))
for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(6, dtype=torch.int32)[::2]):
    try:
        map_and_record(torch.tensor([[0]]), torch.tensor([[0]]), wrong)
    except ValueError as error:
        assert "expected a contiguous torch.int32" in str(error)
    else:
        raise AssertionError(wrong)
print("equal")
"""

# What a graph replays reads ids, tables and the number of tokens as they are then.
CAPTURED = """
import torch
from vllm_ascend_moe.npu_ops.kernels.triton_map_and_record import map_and_record
from vllm_ascend_moe.npu_ops.ops import map_to_physical, record_load

torch.set_default_device("cuda")
ids = torch.randint(0, 256, (512, 8))
table = torch.randint(0, 288, (4, 256), dtype=torch.int32)
load, valid = torch.zeros(288, dtype=torch.int32), torch.tensor([512])
map_and_record(ids, table, load, num_tokens=valid)  # compiles
load.zero_()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    found = map_and_record(ids, table, load, num_tokens=valid)
wanted_load = torch.zeros_like(load)
for count in (512, 100, 0):
    ids.copy_(torch.randint(0, 256, ids.shape))
    table.copy_(torch.randint(0, 288, table.shape))
    valid.fill_(count)
    graph.replay()
    wanted = map_to_physical(ids, table)
    record_load(wanted_load, wanted, num_tokens=count)
    assert torch.equal(found, wanted) and torch.equal(load, wanted_load), count
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vllm_ascend_moe.npu_ops.kernels.triton_map_and_record import BLOCK, map_and_record_kernel

pointers = {"ids": "*i32", "table": "*i32", "load": "*i32", "physical": "*i32", "num_tokens": "*i64"}
sizes = dict.fromkeys(["entries", "token_offset", "rows", "num_experts", "num_physical"], "i32")
for ids in ("*i32", "*i64"):
    for bounded in (False, True):
        constants = {"top_k": 8, "bounded": bounded, "block": BLOCK}
        signature = {**pointers, "ids": ids, "physical": ids, **sizes, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(fn=map_and_record_kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert len(compiled.asm["cubin"]) > 1000
        assert ".target sm_90" in compiled.asm["ptx"]
        assert "atom." in compiled.asm["ptx"] or "red." in compiled.asm["ptx"]
print("compiled")
"""


def run(code: str, **environment: str) -> str:
    # Whether Triton interprets is decided when it is imported.
    env = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_interpreted_it_is_map_to_physical_and_record_load() -> None:
    assert run(COMPARED, TRITON_INTERPRET="1", DEVICE="cpu") == "equal"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("code", [COMPARED, CAPTURED], ids=["launched", "in a graph"])
def test_on_a_gpu_it_is_map_to_physical_and_record_load(code: str) -> None:
    assert run(code, DEVICE="cuda") == "equal"


def test_it_compiles_for_sm_90_without_a_gpu() -> None:
    assert run(COMPILED) == "compiled"
