# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect

import pytest
import torch

from vllm_ascend_moe.npu_ops import ops
from vllm_ascend_moe.npu_ops.ops import OPS


def test_each_op_has_torch_npus_signature() -> None:
    assert str(inspect.signature(ops.npu_swiglu)) == "(self, dim=-1)"
    for name, op in OPS.items():
        parameters = inspect.signature(op).parameters
        assert op.name == name
        assert op.schema.startswith(f"{name}(")
        for parameter in inspect.signature(op.twin).parameters.values():
            assert parameters[parameter.name].kind == parameter.kind
    assert {"input_ids", "tid2eid"} < set(inspect.signature(ops.npu_moe_gating_top_k).parameters)


def test_defaults_that_the_twin_lacks_are_taken_and_other_values_refused() -> None:
    x = torch.zeros(2, 8)
    quantised, _ = ops.npu_dynamic_quant(x, smooth_scales=None, quant_mode="pertoken", dst_type=None)  # type: ignore[call-arg]
    assert quantised.dtype == torch.int8
    with pytest.raises(
        ValueError, match="npu_dynamic_quant: quant_mode is pertensor; expected 'pertoken', its default"
    ):
        ops.npu_dynamic_quant(x, quant_mode="pertensor")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="npu_dynamic_quant: group_index is a tensor; expected None"):
        ops.npu_dynamic_quant(x, group_index=torch.zeros(1))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"npu_swiglu\(\) got an unexpected keyword argument 'axis'"):
        ops.npu_swiglu(x, axis=1)  # type: ignore[call-arg]


def test_kernels_are_used_on_a_cpu_unless_twins_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 8)
    monkeypatch.setattr(ops.npu_moe_gating_top_k, "fast", lambda *_, **__: "kernel")
    monkeypatch.setattr(ops.npu_moe_gating_top_k, "twin", lambda *_, **__: "twin")
    found: list[object] = [ops.npu_moe_gating_top_k(x, 1)]
    with ops.twins_only():
        assert not ops.can_use_kernel(x)
        found.append(ops.npu_moe_gating_top_k(x, 1))
    found.append(ops.npu_moe_gating_top_k(x, 1))
    assert found == ["kernel", "twin", "kernel"]
    monkeypatch.undo()
    # What stood in for the twin leaves nothing behind.
    with ops.twins_only():
        ops.npu_moe_gating_top_k(x, 1, bias=torch.zeros(8))
