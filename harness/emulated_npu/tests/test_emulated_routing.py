# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch_npu import _registry
from torch_npu.ops import FAMILIES, atb, custom, load, memory, routing

from vllm_ascend_moe.npu_ops import ops as twins

load()  # here, where torch_npu can be imported


def test_ops_that_the_plugin_has_are_the_plugins() -> None:
    for name in (
        "npu_moe_gating_top_k",
        "npu_moe_token_unpermute",
        "npu_swiglu",
        "npu_grouped_matmul",
        "npu_dynamic_quant",
    ):
        assert _registry.GIVEN[_registry.NPU, name].function is getattr(twins, name).twin
    routed = _registry.GIVEN[_registry.NPU, "npu_moe_init_routing_v2"].function
    assert routed.__wrapped__ is twins.npu_moe_init_routing_v2.twin  # type: ignore[attr-defined]
    assert len(FAMILIES) == len(set(FAMILIES))


def test_gating_by_vllm_ascends_name_is_the_same() -> None:
    x, bias = torch.randn(9, 16, generator=torch.Generator().manual_seed(0)), torch.randn(16)
    found = routing.moe_gating_top_k(x, 4, 2, 4, 1, 1, 1, True, 2.5, 1e-20, bias)
    wanted = twins.npu_moe_gating_top_k.twin(
        x, 4, bias=bias, k_group=2, group_count=4, group_select_mode=1, renorm=1, norm_type=1, out_flag=True,
        routed_scaling_factor=2.5,
    )  # fmt: skip
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("bad", [-1, 4])
def test_ids_out_of_range_are_refused(bad: int) -> None:
    ids = torch.tensor([[0, 3], [1, bad]], dtype=torch.int32)
    with pytest.raises(IndexError, match=rf"expert ids {min(0, bad)} … {max(3, bad)}; expected 0 … 3"):
        routing.npu_moe_init_routing(torch.ones(2, 3), ids, expert_num=4)
    # A dtype that torch has no type for is not emulated; int8 may be said of what is int8.
    with pytest.raises(
        NotImplementedError, match=r"x_dtype is 1 with x of torch\.float32; expected 1 with int8"
    ):
        routing.npu_moe_init_routing(torch.ones(2, 3), ids.clamp(0, 3), expert_num=4, x_dtype=1)
    rows, *_ = routing.npu_moe_init_routing(
        torch.ones(2, 3), ids.clamp(0, 3), expert_num=4, active_expert_range=[0, 1], quant_mode=-1
    )
    assert not rows[0].isnan().any()
    assert rows[-1].isnan().all()


@pytest.mark.parametrize("top_k", [None, 3])
def test_rows_are_permuted_by_expert_and_say_where_they_went(top_k: int | None) -> None:
    shape = (5,) if top_k is None else (5, top_k)
    indices = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(10.0).view(5, 2)
    rows, place = routing.npu_moe_token_permute(tokens, indices)
    flat = indices.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda entry: flat[entry])
    assert rows.tolist() == [tokens[entry // (top_k or 1)].tolist() for entry in order]
    assert place.tolist() == [order.index(entry) for entry in range(len(flat))]
    assert place.dtype == torch.int32
    assert torch.equal(routing.npu_moe_token_permute(tokens, indices, 4)[0], rows[:4])


def test_a_ranks_part_of_the_vocabulary_is_looked_up() -> None:
    tokens = torch.arange(12)
    found, elsewhere = custom.get_masked_input_and_mask(tokens, 3, 6, 2, 8, 10)
    # Rows of the rank's table: three of the vocabulary, two of padding, two added ones.
    rows = {3: 0, 4: 1, 5: 2, 8: 5, 9: 6}
    assert found.tolist() == [rows.get(token, 0) for token in range(12)]
    assert elsewhere.tolist() == [token not in rows for token in range(12)]


def test_products_are_added_in_place() -> None:
    x, weight, c = (
        torch.ones(3, 2, dtype=torch.bfloat16),
        torch.full((3, 4), 2.0, dtype=torch.bfloat16),
        torch.ones(2, 4),
    )
    assert atb.npu_matmul_add_fp32(x, weight, c) is c
    assert c.tolist() == [[7.0] * 4] * 2


def test_formats_change_nothing() -> None:
    x = torch.ones(2)
    cast = memory.npu_format_cast(x)
    assert torch.equal(cast, x)
    assert cast.data_ptr() != x.data_ptr()
    assert memory.npu_format_cast_(x) is x
    assert memory.get_npu_format(x) == 2
