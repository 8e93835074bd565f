# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import DTYPES, normal

from vllm_ascend_moe.npu_ops.ops import npu_swiglu


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 6),
    st.integers(1, 5),
    st.sampled_from(DTYPES),
    st.sampled_from([-1, 1, 0]),
    st.integers(0, 2**32),
)
def test_it_is_silu_of_one_half_times_the_other(
    tokens: int, half: int, dtype: torch.dtype, dim: int, seed: int
) -> None:
    x = normal(tokens * 2 if dim == 0 else tokens, half * 2, seed=seed, dtype=dtype)
    found = npu_swiglu.twin(x, dim)
    assert found.dtype == dtype
    gate, up = x.chunk(2, dim=dim)
    wanted = [
        [a / (1 + math.exp(-a)) * b for a, b in zip(left, right, strict=True)]
        for left, right in zip(gate.tolist(), up.tolist(), strict=True)
    ]
    # Rounded once: the nearest value of the dtype, but for float32's own rounding.
    torch.testing.assert_close(
        found,
        torch.tensor(wanted, dtype=torch.float64).reshape(gate.shape).to(dtype),
        rtol=2**-8 if dtype == torch.bfloat16 else 1e-3 if dtype == torch.float16 else 1e-5,
        atol=1e-6,
    )


def test_the_input_is_left_alone() -> None:
    x = normal(3, 4, seed=0)
    before = x.clone()
    npu_swiglu.twin(x)
    assert torch.equal(x, before)
