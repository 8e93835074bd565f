# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_npu.ops import quantisation


def int8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def scale(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) / 100 + 1e-3


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


@pytest.mark.parametrize("biased", [None, torch.int32, torch.float32])
def test_int8_products_are_exact_before_they_are_scaled(biased: torch.dtype | None) -> None:
    x, weight, columns, rows = int8(2, 3, 500), int8(500, 4, seed=1), scale(4), scale(2, 3, seed=1)
    bias = None if biased is None else torch.tensor([900, -5, 70, 8]).to(biased)
    found = quantisation.npu_quant_matmul(x, weight, columns, pertoken_scale=rows, bias=bias, output_dtype=6)
    for i in range(2):
        for j in range(3):
            for n in range(4):
                total = sum(a * b for a, b in zip(x[i, j].tolist(), weight[:, n].tolist(), strict=True))
                before = int(bias[n]) if bias is not None and biased == torch.int32 else 0
                after = float(bias[n]) if bias is not None and biased == torch.float32 else 0.0
                wanted = (total + before) * float(columns[n]) * float(rows[i, j]) + after
                assert float(found[i, j, n]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"scale": torch.ones(2).long()}, {"x1": torch.ones(1, 2)}, {"output_dtype": None}, {"output_dtype": 1}],
)
def test_products_of_other_dtypes_are_refused(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "x1": int8(1, 2),
        "x2": int8(2, 2),
        "scale": torch.ones(2),
        "output_dtype": 15,
        **changes,
    }
    with pytest.raises(NotImplementedError, match="npu_quant_matmul: "):
        quantisation.npu_quant_matmul(**given)


def test_static_scales_round_to_the_nearest_even_and_stop_at_the_ends() -> None:
    x = torch.tensor([[0.5, 1.5, 400.0, -400.0]])
    assert quantisation.npu_quantize(x, torch.ones(1), None, 1).tolist() == [[0, 2, 127, -128]]
    halved = quantisation.npu_quantize(x, torch.full((4,), 2.0), torch.full((4,), 3.0), 1, -1)
    assert halved.tolist() == [[3, 4, 127, -128]]
    assert quantisation.npu_quantize(x, torch.full((1,), 2.0), None, 1, -1, div_mode=False).tolist() == [
        [1, 3, 127, -128]
    ]
    with pytest.raises(NotImplementedError, match="axis 0 of 2"):
        quantisation.npu_quantize(x, torch.ones(4), None, 1, 0)


@pytest.mark.parametrize("left", [True, False])
def test_products_are_scaled_by_group_gated_and_quantised(left: bool) -> None:
    counts = torch.tensor([2, 0, 3])
    x = torch.randint(-9999, 9999, (7, 6), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    columns, rows = scale(3, 6), scale(7, seed=1)
    found, found_scale = quantisation.npu_dequant_swiglu_quant(
        x, weight_scale=columns, activation_scale=rows, group_index=counts, activate_left=left, quant_mode=1
    )
    for row, group in enumerate([0, 0, 2, 2, 2]):
        values = x[row].float() * columns[group] * rows[row]
        gated = silu(values[:3]) * values[3:] if left else values[:3] * silu(values[3:])
        torch.testing.assert_close(found_scale[row], gated.abs().max() / 127)
        assert (found[row] - (gated / found_scale[row]).round()).abs().max() <= 1
    assert (found[5:] == -128).all()
    assert found_scale[5:].isnan().all()
    with pytest.raises(NotImplementedError, match="quant_mode 0; expected int32 with both scales, and 1"):
        quantisation.npu_dequant_swiglu_quant(x, weight_scale=columns, activation_scale=rows)


def test_the_fused_product_is_product_gate_and_quantisation() -> None:
    ends = torch.tensor([2, 2, 5])
    x, weight, columns, rows = int8(6, 40), int8(3, 40, 8, seed=1), scale(3, 8), scale(6, seed=1)
    found, found_scale, _ = quantisation.grouped_matmul_swiglu_quant(x, weight, columns, rows, ends)
    for row, group in enumerate([0, 0, 2, 2, 2]):
        values = (x[row].long() @ weight[group].long()).float() * columns[group] * rows[row]
        gated = silu(values[:4]) * values[4:]
        torch.testing.assert_close(found_scale[row], gated.abs().max() / 127)
        assert (found[row] - (gated / found_scale[row]).round()).abs().max() <= 1
    assert (found[5:] == -128).all()
    assert found_scale[5:].isnan().all()
    for weights, scales in (([weight], [columns]), (list(weight), list(columns))):
        listed = quantisation.grouped_matmul_swiglu_quant_tensor_list(x, weights, scales, rows, ends)
        assert torch.equal(listed[0], found)
    turned = quantisation.npu_grouped_matmul_swiglu_quant(x, weight, ends, columns, rows)
    assert torch.equal(turned[0], found)
