# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import DTYPES, normal

from vllm_ascend_moe.npu_ops.ops import npu_dynamic_quant, npu_moe_init_routing_v2


def check_counts(
    counts: torch.Tensor, flat: list[int], start: int, end: int, experts: int, count_type: int
) -> None:
    by_expert = [flat.count(expert) for expert in range(start, end)]
    if count_type == 0:
        assert counts.tolist() == [sum(by_expert[: i + 1]) for i in range(end - start)]
    elif count_type == 1:
        assert counts.tolist() == by_expert
    else:
        pairs = [[start + i, n] for i, n in enumerate(by_expert) if n]
        assert counts.tolist() == pairs + [[0, 0]] * (experts - len(pairs))


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 8),
    st.data(),
    st.sampled_from(DTYPES),
    st.integers(0, 2),
    st.integers(0, 1),
    st.sampled_from([-1, 1]),
    st.sampled_from([npu_moe_init_routing_v2.twin, npu_moe_init_routing_v2.fast]),
    st.integers(0, 2**32),
)
def test_it_is_the_obvious_loop(
    tokens: int,
    k: int,
    experts: int,
    data: st.DataObject,
    dtype: torch.dtype,
    count_type: int,
    row_idx_type: int,
    quant_mode: int,
    implementation: Any,  # noqa: ANN401 - the op's
    seed: int,
) -> None:
    start = data.draw(st.integers(0, experts - 1))
    end = data.draw(st.integers(start + 1, experts))
    x = normal(tokens, 6, seed=seed, dtype=dtype)
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts, (tokens, k), generator=drawn, dtype=torch.int32)
    rows, row_idx, counts, scale = implementation(
        x,
        ids,
        expert_num=experts,
        expert_tokens_num_type=count_type,
        expert_tokens_num_flag=True,
        quant_mode=quant_mode,
        active_expert_range=[start, end],
        row_idx_type=row_idx_type,
    )
    flat = ids.flatten().tolist()
    # Sorted by expert, and by token within an expert.
    order = [i for expert in range(start, end) for i, found in enumerate(flat) if found == expert]
    source, source_scale = npu_dynamic_quant.twin(x) if quant_mode == 1 else (x, None)
    assert (tuple(rows.shape), tuple(scale.shape)) == ((tokens * k, 6), (tokens * k,))
    assert rows.dtype == (torch.int8 if quant_mode == 1 else dtype)
    for position, entry in enumerate(order):
        assert torch.equal(rows[position], source[entry // k])
        if source_scale is not None:
            assert scale[position] == source_scale[entry // k]
    assert (row_idx.dtype, counts.dtype) == (torch.int32, torch.int64)
    if twin := implementation is npu_moe_init_routing_v2.twin:
        # Nobody may read what is undefined: whoever does shall see it.
        past = rows[len(order) :]
        assert (past == -128 if quant_mode == 1 else past.isnan()).all()
        assert scale[len(order) :].isnan().all()
        assert scale.isnan().all() or quant_mode == 1
    if row_idx_type == 1:
        assert row_idx[: len(order)].tolist() == order
        assert not twin or (row_idx[len(order) :] == -(2**31)).all()
    else:
        assert row_idx.tolist() == [order.index(i) if i in order else -1 for i in range(len(flat))]
    check_counts(counts, flat, start, end, experts, count_type)


def test_a_scale_is_carried_along() -> None:
    ids = torch.tensor([[1], [0]], dtype=torch.int32)
    _, _, _, scale = npu_moe_init_routing_v2.twin(
        torch.zeros(2, 3), ids, scale=torch.tensor([5.0, 7.0]), expert_num=2
    )
    assert scale.tolist() == [7.0, 5.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"active_num": 1}, "active_num is 1; expected -1, 0 or at least 4"),
        ({"drop_pad_mode": 1}, "drop_pad_mode is 1; expected 0"),
        ({"quant_mode": 0}, "quant_mode is 0; expected -1 or 1"),
        ({"row_idx_type": 2}, "row_idx_type is 2"),
        ({"expert_tokens_num_type": 3}, "expert_tokens_num_type is 3"),
        (
            {"active_expert_range": [2, 2]},
            r"active_expert_range is \[2, 2\]; expected 0 ≤ start < end ≤ expert_num \(4\)",
        ),
        ({"active_expert_range": [0, 5]}, r"active_expert_range is \[0, 5\]"),
        ({"offset": torch.zeros(1)}, "offset is given; expected None"),
        ({"scale": torch.zeros(2), "quant_mode": 1}, "scale is given; expected None with quant_mode 1"),
    ],
)
def test_what_the_twin_does_not_take_is_refused(changes: dict[str, Any], message: str) -> None:
    ids = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"npu_moe_init_routing_v2: {message}"):
        npu_moe_init_routing_v2.twin(torch.zeros(2, 3), ids, expert_num=4, **changes)
