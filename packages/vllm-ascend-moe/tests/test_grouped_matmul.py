# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import DTYPES, TOLERANCE, normal

from vllm_ascend_moe.npu_ops.ops import npu_grouped_matmul

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
    assert whole[-3:].isnan().all()
    (fast,) = npu_grouped_matmul.fast([rows], weights, split_item=2, **options)  # type: ignore[misc]
    assert torch.equal(fast[:-3], whole[:-3])
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


def test_int8_without_scales_gives_exact_int32() -> None:
    rows = torch.randint(-128, 128, (5, 700), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    weight = torch.randint(-128, 128, (2, 700, 3), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    bias = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)
    options: dict[str, Any] = {"group_list": torch.tensor([1, 3]), "group_type": 0, "group_list_type": 1}
    (found,) = npu_grouped_matmul.twin(
        [rows], [weight], bias=[bias], split_item=3, output_dtype=torch.int32, **options
    )
    wanted = [rows[row].long() @ weight[min(row, 1)].long() + bias[min(row, 1)] for row in range(4)]
    assert found.dtype == torch.int32
    assert torch.equal(found[:4].long(), torch.stack(wanted))
    assert (found[4:] == -(2**31)).all()


@pytest.mark.parametrize(
    ("x", "weight", "changes", "message"),
    [
        (
            torch.float8_e4m3fn,
            torch.float8_e4m3fn,
            {"scale": torch.float32},
            "dtype of x is torch.float8_e4m3fn",
        ),
        (torch.int32, torch.int32, {}, "dtype of x is torch.int32; expected int8"),
        (torch.int8, torch.int8, {"scale": torch.int64}, "dtype of scale is torch.int64; expected float16"),
        (torch.int8, torch.int8, {"scale": torch.float8_e4m3fn}, "dtype of scale is torch.float8_e4m3fn"),
        (
            torch.int8,
            torch.int8,
            {"scale": torch.float32, "per_token_scale": torch.int64},
            "dtype of per_token_scale is torch.int64",
        ),
        (
            torch.float32,
            torch.float32,
            {"scale": torch.float32},
            "scale is given; expected None with torch.float32 x",
        ),
        (
            torch.int8,
            torch.float32,
            {"scale": torch.float32},
            "dtype of weight is torch.float32; expected torch.int8",
        ),
    ],
)
def test_dtypes_that_would_give_wrong_numbers_are_refused(
    x: torch.dtype, weight: torch.dtype, changes: dict[str, torch.dtype], message: str
) -> None:
    sizes = {"scale": (1, 4), "per_token_scale": (2,)}
    given = {name: [torch.ones(sizes[name]).to(dtype)] for name, dtype in changes.items()}
    with pytest.raises(ValueError, match=f"npu_grouped_matmul: {message}"):
        npu_grouped_matmul.twin(
            [torch.ones(2, 3).to(x)],
            [torch.ones(1, 3, 4).to(weight)],
            group_list=torch.tensor([2]),
            group_type=0,
            split_item=2,
            **given,  # type: ignore[arg-type]
        )


def test_none_where_the_schema_takes_it_is_the_default() -> None:
    rows, weight = torch.ones(2, 3), torch.ones(2, 3, 4)
    options: dict[str, Any] = {"group_list": torch.tensor([1, 2]), "group_type": 0}
    plain = npu_grouped_matmul([rows], [weight], **options)
    none = npu_grouped_matmul(
        [rows],
        [weight],
        group_list_type=None,
        split_item=None,
        act_type=None,
        tuning_config=None,  # type: ignore[call-arg]
        **options,
    )
    assert [part.tolist() for part in none] == [part.tolist() for part in plain]


def test_as_many_groups_as_matrices_are_wanted() -> None:
    with pytest.raises(ValueError, match="number of groups is 2; expected 1, as many as matrices"):
        npu_grouped_matmul.twin(
            [torch.ones(2, 3)], [torch.ones(1, 3, 4)[0]], group_list=torch.tensor([1, 2]), group_type=0
        )


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
        ({"act_type": 1}, "act_type is 1; expected 0"),
        ({"output_dtype": 77}, "output_dtype is 77; expected one of"),
        ({"output_dtype": torch.int32}, "output_dtype is torch.int32; expected a float dtype"),
    ],
)
def test_what_the_twin_does_not_take_is_refused(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"group_list": torch.tensor([2]), "group_type": 0, "group_list_type": 1}
    with pytest.raises(ValueError, match=f"npu_grouped_matmul: {message}"):
        npu_grouped_matmul.twin([torch.ones(2, 3)], [torch.ones(1, 3, 4)], **{**options, **changes})


def test_int8_without_scales_is_refused() -> None:
    int8 = torch.ones(2, 3, dtype=torch.int8)
    with pytest.raises(ValueError, match="scale is None; expected scales with int8 x, or output_dtype int32"):
        npu_grouped_matmul.twin([int8], [int8[None]], group_list=torch.tensor([2]), group_type=0)


def test_a_list_longer_than_torch_npu_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="number of weights is 129; expected at most 128"):
        npu_grouped_matmul.twin(
            [torch.ones(2, 3)], [torch.ones(3, 4)] * 129, group_list=torch.zeros(129).long(), group_type=0
        )
