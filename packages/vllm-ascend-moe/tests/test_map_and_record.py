# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ascend_moe.npu_ops.ops import (
    can_use_kernel,
    map_and_record,
    map_to_physical,
    record_load,
    take_turns,
    take_turns_and_record,
)

INTEGERS = (torch.int32, torch.int64)


def apart(
    physical: torch.Tensor, load: torch.Tensor, valid: int | None, counted: torch.Tensor | None
) -> torch.Tensor:
    """Count by the plain-torch op what was mapped, and return the new load."""
    new = load.clone()
    seen = physical
    if counted is not None:
        seen = physical[: len(counted)].clone()
        seen[~counted[: len(physical)]] = -1
    record_load(new, seen, num_tokens=valid)
    return new


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 20),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(0, 100),
    st.one_of(st.none(), st.integers(0, 25)),
    st.one_of(st.none(), st.integers(0, 20)),
    st.tuples(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS)),
    st.integers(0, 2**32),
)
def test_one_pass_is_both_ops(
    tokens: int,
    k: int,
    experts: int,
    rows: int,
    offset: int,
    valid: int | None,
    masked: int | None,
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts, (tokens, k), generator=generator).to(dtypes[0])
    counted = None if masked is None else torch.rand(min(masked, tokens), generator=generator) < 0.5
    load = torch.randint(0, 9, (13,), generator=generator).to(dtypes[1])
    bound = torch.tensor(valid) if valid is not None and seed % 2 else valid

    table = torch.randint(0, 13, (rows, experts), generator=generator).to(torch.int32)
    wanted = map_to_physical(ids, table, token_offset=offset)
    mine = load.clone()
    found = map_and_record(ids, table, mine, token_offset=offset, num_tokens=bound, counted=counted)
    assert found.dtype == ids.dtype
    assert torch.equal(found, wanted)
    assert torch.equal(mine, apart(wanted, load, valid, counted))

    slots = torch.randint(0, 13, (experts, rows), generator=generator)
    count = torch.randint(0, rows + 1, (experts,), generator=generator)
    slots[torch.arange(rows) >= count.unsqueeze(1)] = -1
    wanted, mine = take_turns(ids, slots, count), load.clone()
    found = take_turns_and_record(ids, slots, count, mine, num_tokens=bound, counted=counted)
    assert torch.equal(found, wanted)
    assert torch.equal(mine, apart(wanted, load, valid, counted))


def test_off_the_kernel_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([[0, 2], [-1, 1], [2, 2]])
    counted = torch.tensor([True, False])
    slots, count = torch.tensor([[0, 3], [1, -1], [2, -1]]), torch.tensor([2, 1, 1])
    results = []
    for plain in (False, True):
        if plain:
            # The module, which the package's function of that name hides.
            module = importlib.import_module("vllm_ascend_moe.npu_ops.ops.map_and_record")
            monkeypatch.setattr(module, "can_use_kernel", lambda _: False)
        one, two = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
        mapped = map_and_record(ids, torch.tensor([3, 1, 2]), one, counted=counted)
        turned = take_turns_and_record(ids, slots, count, two, num_tokens=2)
        results.append((mapped.tolist(), turned.tolist(), one.tolist(), two.tolist()))
    assert results[0] == results[1]
    assert results[0] == (
        [[3, 2], [-1, 1], [2, 2]],
        [[0, 2], [-1, 1], [2, 2]],
        [0, 0, 1, 1],
        [1, 1, 1, 0],
    )


@pytest.mark.parametrize(
    ("ids", "table", "load"),
    [
        ([[0, 3]], [[0, 1, 2]], 3),  # no such expert
        ([[0, 1]], [[0, 9, 2]], 3),  # no such physical expert
        ([[0, 1]], [[0, -1, 2]], 3),  # an expert that is nowhere
    ],
)
def test_what_does_not_exist_is_named_and_nothing_past_the_end_is_written(
    ids: list[list[int]], table: list[list[int]], load: int
) -> None:
    with pytest.raises(
        IndexError, match=rf"topk_ids has {ids[0][1]} at entry 1; expected logical ids below 3, mapped to"
    ):
        map_and_record(torch.tensor(ids), torch.tensor(table), torch.zeros(load, dtype=torch.int32))


def test_turns_name_what_does_not_exist() -> None:
    load = torch.zeros(3, dtype=torch.int32)
    for ids, slots, count in (
        ([[0, 2]], [[0], [1]], [1, 1]),
        ([[0, 1]], [[0], [7]], [1, 1]),
        ([[0, 1]], [[0], [1]], [1, 2]),
    ):
        with pytest.raises(IndexError, match=r"topk_ids has \d at entry 1; expected logical ids below 2"):
            take_turns_and_record(torch.tensor(ids), torch.tensor(slots), torch.tensor(count), load)


def test_a_slice_of_the_load_is_counted_in_place() -> None:
    loads = torch.zeros(4, 2, dtype=torch.int32).t()
    map_and_record(torch.tensor([[0, 1], [1, 2]]), torch.arange(4), loads[1])
    assert loads.tolist() == [[0, 0, 0, 0], [1, 2, 1, 0]]


def test_fake_tensors_go_to_plain_torch() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        ids = torch.zeros(5, 2, dtype=torch.int32)
        assert not can_use_kernel(ids)
        load = torch.zeros(4, dtype=torch.int32)
        assert map_and_record(ids, torch.zeros(3, 4, dtype=torch.int32), load).shape == (5, 2)
