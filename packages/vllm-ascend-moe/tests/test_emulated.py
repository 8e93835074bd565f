# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest
import torch
from sizes import choose, normal

from vllm_ascend_moe.npu_ops import ops
from vllm_ascend_moe.npu_ops.emulated import emulated_npu
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts
from vllm_ascend_moe.npu_ops.ops import OPS
from vllm_ascend_moe.npu_ops.routing import RoutingConfig, select_experts


def run(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    hidden = normal(17, 12, seed=0, dtype=dtype)
    outputs: list[torch.Tensor] = []
    for config in (
        RoutingConfig(16, 4),
        RoutingConfig(16, 4, "sigmoid", True, 4, 2, 2.5),
        RoutingConfig(16, 2, "sigmoid", False),
    ):
        weights, ids = select_experts(normal(17, 16, seed=1), config, normal(16, seed=2))
        experts = ExpertWeights(
            normal(8, 12, 20, seed=3, dtype=dtype), normal(8, 10, 12, seed=4, dtype=dtype)
        )
        outputs += [weights, ids, apply_experts(hidden, weights, ids, experts, first_physical=8)]
    return outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_runs_through_the_registered_ops_and_is_the_same(dtype: torch.dtype) -> None:
    wanted = run(dtype)
    with emulated_npu():
        found = run(dtype)
    # The twins are registered; outside it is kernels, which round the weights otherwise.
    step = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=10 * step, rtol=step)


def test_w8a8_runs_there_too() -> None:
    int8 = ExpertWeights(
        torch.randint(-127, 127, (2, 12, 20), dtype=torch.int8),
        torch.randint(-127, 127, (2, 10, 12), dtype=torch.int8),
        torch.rand(2, 20),
        torch.rand(2, 12),
    )
    hidden, probs, ids = normal(5, 12, seed=0, dtype=torch.bfloat16), torch.rand(5, 2), choose(5, 2, 2, 1)
    wanted = apply_experts(hidden, probs, ids, int8)
    with emulated_npu():
        assert torch.equal(apply_experts(hidden, probs, ids, int8), wanted)


def test_every_call_goes_through_torch_ops_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()
    for name, op in OPS.items():

        def refuse(*_: object, _name: str = name, **__: object) -> None:
            called.add(_name)

        with emulated_npu():
            monkeypatch.setattr(torch.ops.npu, name, refuse, raising=False)
            op(torch.zeros(1))
            monkeypatch.undo()
    assert called == set(OPS)


def test_what_the_schema_does_not_have_is_refused() -> None:
    x = torch.zeros(2, 8)
    with emulated_npu():
        with pytest.raises(RuntimeError, match="axis"):
            ops.npu_swiglu(x, axis=1)  # type: ignore[call-arg]
        with pytest.raises(RuntimeError, match="k"):
            ops.npu_moe_gating_top_k(x, "two")  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="missing value for argument"):
            ops.npu_moe_token_unpermute(x)  # type: ignore[call-arg]
        with pytest.raises((RuntimeError, ValueError), match="input_ids"):
            ops.npu_moe_gating_top_k(x, 1, input_ids=torch.zeros(2).long(), tid2eid=torch.zeros(2, 1).long())  # type: ignore[call-arg]


def test_it_leaves_nothing_behind_and_can_be_entered_again() -> None:
    for _ in range(2):
        with emulated_npu():
            assert torch.equal(
                torch.ops.npu.npu_swiglu(torch.ones(1, 2)), ops.npu_swiglu.twin(torch.ones(1, 2))
            )
            with pytest.raises(RuntimeError, match="registered already"), emulated_npu():
                pass
        assert not hasattr(torch.ops.npu, "npu_swiglu")
        ops.npu_swiglu(torch.ones(1, 2))
    assert "torch_npu" not in sys.modules
