# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import DTYPES, normal

from vllm_ascend_moe.npu_ops.ops import npu_dynamic_quant


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 6), st.integers(1, 9), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 2**32))
def test_rows_come_back_within_half_a_step(
    tokens: int, hidden: int, dtype: torch.dtype, smooth: bool, seed: int
) -> None:
    x = normal(tokens, hidden, seed=seed, dtype=dtype)
    factors = normal(hidden, seed=seed + 1).abs() + 0.1 if smooth else None
    quantised, scale = npu_dynamic_quant.twin(x, smooth_scales=factors)
    assert (quantised.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert tuple(scale.shape) == (tokens,)
    values = x.float() * (1 if factors is None else factors)
    for row in range(tokens):
        assert torch.isclose(scale[row], values[row].abs().max() / 127)
        assert ((quantised[row].float() * scale[row] - values[row]).abs() <= scale[row] * 0.5001).all()
        assert quantised[row].abs().max() == 127 or scale[row] == 0


def test_a_row_of_zeros_stays_zeros() -> None:
    quantised, scale = npu_dynamic_quant.twin(torch.tensor([[0.0, 0.0], [0.0, 2.54]]))
    assert quantised.tolist() == [[0, 0], [0, 127]]
    assert scale[0] == 0


def test_leading_axes_are_kept() -> None:
    quantised, scale = npu_dynamic_quant.twin(torch.ones(2, 3, 4))
    assert tuple(quantised.shape) == (2, 3, 4)
    assert tuple(scale.shape) == (2, 3)


@pytest.mark.parametrize("dst_type", [None, torch.int8, 1])
def test_int8_may_be_asked_for(dst_type: torch.dtype | int | None) -> None:
    assert npu_dynamic_quant(torch.ones(1, 2), dst_type=dst_type)[0].tolist() == [[127, 127]]


def test_another_dtype_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"npu_dynamic_quant: dst_type is torch.float8_e4m3fn; expected None"
    ):
        npu_dynamic_quant(torch.ones(1, 2), dst_type=torch.float8_e4m3fn)
