# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch_npu.ops import norms


def obvious(row: list[float], gamma: list[float], epsilon: float) -> list[float]:
    root = math.sqrt(sum(value * value for value in row) / len(row) + epsilon)
    return [value / root * factor for value, factor in zip(row, gamma, strict=True)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_row_is_divided_by_its_root_mean_square() -> None:
    x, gamma = draw(5, 8), draw(8, seed=1)
    y, rstd = norms.npu_rms_norm(x, gamma, 1e-3)
    wanted = torch.tensor([obvious(row, gamma.tolist(), 1e-3) for row in x.tolist()])
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(y, x * rstd * gamma)
    assert (rstd.dtype, tuple(rstd.shape)) == (torch.float32, (5, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_is_normed_and_given_back(dtype: torch.dtype) -> None:
    x, residual, gamma, beta = (draw(3, 4, seed=seed).to(dtype) for seed in range(4))
    gamma, beta = gamma[0], beta[0]
    added = x + residual
    y, rstd, total = norms.npu_add_rms_norm(x, residual, gamma, 1e-5)
    assert torch.equal(total, added)
    assert torch.equal(y, norms.npu_rms_norm(added, gamma, 1e-5)[0])
    biased, other, again = norms.npu_add_rms_norm_bias(x, residual, gamma, beta, 1e-5)
    assert torch.equal(biased, y + beta)
    assert torch.equal(other, rstd)
    assert torch.equal(again, total)
    assert torch.equal(
        norms.npu_add_rms_norm_bias(x, residual, gamma)[0], norms.npu_add_rms_norm(x, residual, gamma)[0]
    )
    assert biased.dtype == dtype
