# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import DTYPES, TOLERANCE, normal

from vllm_ascend_moe.ops import npu_grouped_matmul

COUNTS = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def group_list(counts: list[int], list_type: int) -> torch.Tensor:
    sizes = torch.tensor(counts, dtype=torch.int64)
    return sizes if list_type == 1 else sizes.cumsum(0)


@settings(deadline=None, max_examples=80)
@given(
    COUNTS, st.integers(0, 1), st.booleans(), st.booleans(), st.sampled_from(DTYPES), st.integers(0, 2**32)
)
def test_each_group_is_multiplied_by_its_weight(
    counts: list[int], list_type: int, stacked: bool, biased: bool, dtype: torch.dtype, seed: int
) -> None:
    rows = normal(sum(counts) + 3, 5, seed=seed, dtype=dtype)  # the last three belong to no group
    weight, bias = (
        normal(len(counts), 5, 7, seed=seed + 1, dtype=dtype),
        normal(len(counts), 7, seed=seed + 2, dtype=dtype),
    )
    options: dict[str, Any] = {
        "group_list": group_list(counts, list_type),
        "group_type": 0,
        "group_list_type": list_type,
    }
    if biased:
        options["bias"] = [bias] if stacked else list(bias)
    weights = [weight] if stacked else list(weight)
    (whole,) = npu_grouped_matmul.twin([rows], weights, split_item=2, **options)
    parts = npu_grouped_matmul.twin([rows], weights, split_item=0, **options)
    assert whole.dtype == dtype
    assert tuple(whole.shape) == (len(rows), 7)
    start = 0
    for group, count in enumerate(counts):
        for row in range(start, start + count):
            wanted = rows[row].double() @ weight[group].double() + (bias[group].double() if biased else 0)
            torch.testing.assert_close(
                whole[row].double(), wanted, atol=5 * TOLERANCE[dtype], rtol=TOLERANCE[dtype]
            )
        assert torch.equal(parts[group], whole[start : start + count])
        start += count


@settings(deadline=None, max_examples=60)
@given(COUNTS, st.integers(0, 1), st.sampled_from([torch.bfloat16, torch.float16]), st.integers(0, 2**32))
def test_int8_products_are_exact_before_they_are_scaled(
    counts: list[int], list_type: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-128, 128, (sum(counts), 600), generator=generator).to(torch.int8)
    weight = torch.randint(-128, 128, (len(counts), 600, 4), generator=generator).to(torch.int8)
    scale = torch.rand(len(counts), 4, generator=generator) / 1e3
    token_scale = torch.rand(len(rows), generator=generator) / 1e3
    (found,) = npu_grouped_matmul.twin(
        [rows],
        [weight],
        scale=[scale],
        per_token_scale=[token_scale],
        group_list=group_list(counts, list_type),
        split_item=2,
        group_type=0,
        group_list_type=list_type,
        output_dtype=dtype,
    )
    assert found.dtype == dtype
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    for row, group in enumerate(owner.tolist()):
        exact = (rows[row].long() @ weight[group].long()).float()
        assert torch.equal(found[row], (exact * scale[group] * token_scale[row]).to(dtype))


def test_a_dtype_may_be_given_by_number() -> None:
    int8 = torch.ones(2, 3, dtype=torch.int8)
    options: dict[str, Any] = {"scale": [torch.ones(1, 4)], "group_list": torch.tensor([2]), "group_type": 0}
    (found,) = npu_grouped_matmul.twin(
        [int8], [torch.ones(1, 3, 4, dtype=torch.int8)], output_dtype=15, split_item=2, **options
    )
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_type": None}, "group_type is None; expected 0"),
        ({"group_list": None}, "group_type is 0; expected 0, with a group_list"),
        ({"group_list_type": 2}, "group_list_type is 2"),
    ],
)
def test_what_the_twin_does_not_take_is_refused(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"group_list": torch.tensor([2]), "group_type": 0, "group_list_type": 1}
    with pytest.raises(ValueError, match=f"npu_grouped_matmul: {message}"):
        npu_grouped_matmul.twin([torch.ones(2, 3)], [torch.ones(1, 3, 4)], **{**options, **changes})


def test_int8_without_scales_is_refused() -> None:
    int8 = torch.ones(2, 3, dtype=torch.int8)
    with pytest.raises(ValueError, match="scale is None; expected scales with int8 x"):
        npu_grouped_matmul.twin([int8], [int8[None]], group_list=torch.tensor([2]), group_type=0)


def test_a_list_longer_than_torch_npu_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="number of weights is 129; expected at most 128"):
        npu_grouped_matmul.twin(
            [torch.ones(2, 3)], [torch.ones(3, 4)] * 129, group_list=torch.zeros(129).long(), group_type=0
        )
