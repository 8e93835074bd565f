# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the runner V2: each against a loop, by program, as the kernel itself is written."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch_npu import _environment, _interpreted, kernels
from torch_npu.kernels import rope

kernels.load()


def run(name: str, grid: tuple[int, ...], **arguments: Any) -> None:  # noqa: ANN401 - the kernel's
    kernels.launch(name, (), grid, **arguments)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_arguments_are_bound_by_the_kernels_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def some_kernel(grid: Any, *, second: int, third: int, **more: object) -> None:  # noqa: ANN401
        found.append((grid, second, third, more))

    monkeypatch.setitem(kernels.GIVEN, "some_kernel", some_kernel)
    kernels.launch("some_kernel", ["first", "second"], lambda values: (values["third"],), 1, 2, third=3, x=4)
    assert found == [((3,), 2, 3, {"first": 1, "x": 4})]


def test_what_is_not_given_is_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted: list[Any] = []
    launch = _interpreted._given_first(lambda *args, **kwargs: interpreted.append((args, kwargs)))
    other = SimpleNamespace(__name__="another_kernel", arg_names=["first"])
    launch(other, 1, grid=(2,), warmup=False)
    assert interpreted == [((other, 1), {"grid": (2,), "warmup": False})]
    monkeypatch.setitem(kernels.GIVEN, "another_kernel", lambda _, **values: interpreted.append(values))
    launch(other, 1, grid=(2,), warmup=False)
    assert interpreted[1:] == [{"first": 1, "warmup": False}]


def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, wanted in (("0", False), ("1", True)):
        monkeypatch.setenv(_environment.TRITON, text)
        assert _environment.has_triton() is wanted
    monkeypatch.setenv(_environment.TRITON, "yes")
    with pytest.raises(ValueError, match="EMULATED_NPU_TRITON is 'yes'; expected 0 or 1"):
        _environment.has_triton()
    monkeypatch.delenv(_environment.TRITON)
    assert not _environment.has_triton()


@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize("neox", [True, False])
def test_each_pair_is_turned_by_its_tokens_angle(neox: bool, by_position: bool) -> None:
    size, rotated, positions = 6, 4, ints(3, 0, 7)
    angles = [[position / 10**i for i in range(rotated // 2)] for position in range(8)]
    table = torch.tensor([[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles])
    query, key = draw(4, 2, size), draw(4, 1, size, seed=1)
    wanted = [heads.clone() for heads in (query, key)]
    for heads in wanted:
        for token, position in enumerate(positions.tolist()):
            for head in heads[token]:
                before = head.tolist()
                for i, angle in enumerate(angles[position]):
                    a, b = (i, rotated // 2 + i) if neox else (2 * i, 2 * i + 1)
                    head[a] = before[a] * math.cos(angle) - before[b] * math.sin(angle)
                    head[b] = before[b] * math.cos(angle) + before[a] * math.sin(angle)
    chosen = table[positions.long()]
    rope._triton_rope(
        (2,),
        q_ptr=query,
        k_ptr=key,
        cos_ptr=None if by_position else chosen[:, :2],
        sin_ptr=None if by_position else chosen[:, 2:],
        cos_sin_ptr=table if by_position else None,
        pos_ptr=positions if by_position else None,
        num_tokens=3,
        rope_dim=rotated,
        IS_NEOX_STYLE=neox,
    )
    torch.testing.assert_close([query, key], wanted)


def sampled(temperature: float = 0.0, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
    tokens, vocabulary, block, blocks = 3, 10, 4, 3
    logits, requests = draw(tokens, vocabulary), ints(1, -1, 0)
    temperatures = torch.tensor([0.0, temperature])
    spaces = {
        "block_argmax_ptr": torch.empty(tokens, blocks, dtype=torch.int64),
        "block_max_ptr": torch.empty(tokens, blocks),
    }
    same = {"expanded_idx_mapping_ptr": requests, "temp_ptr": temperatures, "num_tokens": tokens}
    run(
        "_categorical_prepare_mass_kernel", (2,), logits_ptr=logits, vocab_size=vocabulary, num_blocks=blocks,
        COARSE_BLOCK_SIZE=block, block_mass_ptr=torch.empty(tokens, blocks),
        fine_mass_ptr=torch.empty(tokens, blocks, 2), **{"logits_cache_ptr": None, **same, **spaces, **more},
    )  # fmt: skip
    found = torch.empty(tokens, dtype=torch.int64)
    run("_categorical_sample_kernel", (2,), sampled_ptr=found, num_blocks=blocks, **same, **spaces)
    return found, logits


def test_a_greedy_token_has_the_largest_logit() -> None:
    found, logits = sampled()
    assert found.tolist() == [max(range(10), key=row.tolist().__getitem__) for row in logits]


def test_temperatures_and_caches_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"a temperature is 0\.5; expected 0"):
        sampled(0.5)
    with pytest.raises(NotImplementedError, match="logits_cache_ptr is a tensor; expected None"):
        sampled(logits_cache_ptr=torch.zeros(1))


def test_logarithms_are_those_of_a_loop() -> None:
    logits, chosen, found = draw(3, 7), torch.tensor([[2, 0], [6, 6], [1, 5]]), torch.empty(3, 2)
    run(
        "_topk_log_softmax_kernel",
        (3,),
        output_ptr=found,
        logits_ptr=logits,
        topk_ids_ptr=chosen,
        topk=2,
        vocab_size=7,
    )
    for row, tokens, logarithms in zip(logits.tolist(), chosen.tolist(), found, strict=True):
        total = math.log(sum(math.exp(value) for value in row))
        assert logarithms.tolist() == pytest.approx([row[token] - total for token in tokens], abs=1e-6)


@pytest.mark.parametrize(("first", "grid", "told"), [(1, 3, {}), (0, 2, {"batch_size": 3})])
def test_ranks_begin_where_the_kernel_of_that_name_begins(
    first: int, grid: int, told: dict[str, int]
) -> None:
    logits, chosen, ranks = draw(3, 7), torch.tensor([2, 6, 1]), torch.empty(3, dtype=torch.int64)
    run(
        "_ranks_kernel",
        (grid,),
        output_ptr=ranks,
        logits_ptr=logits,
        token_ids_ptr=chosen,
        vocab_size=7,
        **told,
    )
    for row, token, rank in zip(logits.tolist(), chosen.tolist(), ranks.tolist(), strict=True):
        assert rank == first + sorted(row, reverse=True).index(row[token])


def tables(rows: int, width: int, groups: int, seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    made = [
        torch.randint(1, 99, (rows, width), generator=torch.Generator().manual_seed(seed + group)).int()
        for group in range(groups)
    ]
    return made, torch.tensor([table.data_ptr() for table in made], dtype=torch.uint64)


def test_a_batch_gets_its_requests_blocks() -> None:
    source, sources = tables(5, 6, 2)
    target, targets = tables(4, 6, 2, seed=9)
    before = [table.clone() for table in target]
    counts = torch.tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])
    run(
        "_gather_block_tables_kernel",
        (2, 4),
        batch_idx_to_req_idx=ints(3, 0, 4),
        src_block_table_ptrs=sources,
        dst_block_table_ptrs=targets,
        block_table_strides=torch.tensor([6, 6]),
        num_blocks_ptr=counts,
        num_reqs=3,
    )
    for group in range(2):
        for row, request in enumerate((3, 0, 4)):
            count = int(counts[group, request])
            wanted = source[group][request, :count].tolist() + before[group][row, count:].tolist()
            assert target[group][row].tolist() == wanted
        assert target[group][3].tolist() == [0] * 6


def slots(enabled: list[bool] | None, cp_size: int = 1) -> tuple[torch.Tensor, list[torch.Tensor]]:
    blocks, addresses = tables(4, 5, 2)
    found = torch.zeros(2, 8, dtype=torch.int32)
    run(
        "_compute_slot_mappings_kernel",
        (2, 3),
        max_num_tokens=8,
        idx_mapping=ints(2, 0),
        query_start_loc=ints(0, 3, 4, 99),
        pos=torch.tensor([2, 3, 4, 9, 0, 0, 0, 0]),
        block_table_ptrs=addresses,
        block_table_strides=torch.tensor([5, 5]),
        kernel_block_sizes=ints(4, 2),
        slot_mappings_ptr=found,
        CP_SIZE=cp_size,
        PAD_ID=-1,
        slot_mapping_enabled=None if enabled is None else torch.tensor(enabled),
    )
    return found, blocks


@pytest.mark.parametrize("enabled", [None, [True, False]])
def test_each_token_gets_its_positions_slot(enabled: list[bool] | None) -> None:
    found, blocks = slots(enabled)
    for group, size in enumerate((4, 2)):
        wanted = [
            int(blocks[group][request, at // size]) * size + at % size
            for request, at in ((2, 2), (2, 3), (2, 4), (0, 9))
        ]
        wanted = wanted if enabled is None or enabled[group] else [-1] * 4
        assert found[group].tolist() == [*wanted, -1, -1, -1, -1]


def test_context_parallelism_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="CP_SIZE is 2; expected 1"):
        slots(None, cp_size=2)


def test_positions_go_on_from_what_is_computed() -> None:
    positions, lengths = torch.full((6,), 77), torch.full((4,), 55)
    run(
        "_prepare_pos_seq_lens_kernel",
        (3,),
        pos_ptr=positions,
        seq_lens_ptr=lengths,
        idx_mapping_ptr=ints(2, 0),
        query_start_loc_ptr=ints(0, 3, 5, 5),
        num_computed_tokens_ptr=ints(4, 0, 7),
        max_num_reqs=4,
    )
    assert positions.tolist() == [7, 8, 9, 4, 5, 77]
    assert lengths.tolist() == [10, 6, 0, 0]


@pytest.mark.parametrize("sampled_tokens", [1, 0])
def test_sampled_and_drafted_tokens_come_after_the_prompt(sampled_tokens: int) -> None:
    # Request 0 is amid its prompt, 1 past it, 2 past it with two drafts.
    logits = [0, 1, 1 + sampled_tokens, 3 + 2 * sampled_tokens]
    inputs, at = torch.full((8,), 99), torch.full((logits[-1],), -7)
    drafts = torch.tensor([[1, 1], [1, 1], [31, 32], [1, 1]])
    run(
        "_combine_sampled_and_draft_tokens_kernel",
        (3,),
        input_ids_ptr=inputs,
        idx_mapping_ptr=ints(3, 0, 2),
        last_sampled_tokens_ptr=torch.tensor([20, 21, 22, 23]),
        query_start_loc_ptr=ints(0, 3, 4, 8),
        seq_lens_ptr=ints(3, 6, 9),
        prefill_len_ptr=ints(5, 5, 5, 5),
        draft_tokens_ptr=drafts,
        cu_num_logits_ptr=ints(*logits),
        logits_indices_ptr=at,
        NUM_NEW_SAMPLED_TOKENS=sampled_tokens,
    )
    wanted = [99] * 8
    wanted[6:8] = [31, 32]
    if sampled_tokens:
        wanted[3], wanted[5] = 20, 22
    assert inputs.tolist() == wanted
    assert at.tolist() == ([2, 3, 5, 6, 7] if sampled_tokens else [2, 6, 7])


def test_nothing_is_sampled_amid_a_prompt() -> None:
    counts, rejected = ints(1, 2, 1), ints(9, 9, 9)
    run(
        "_get_num_sampled_and_rejected_kernel",
        (3,),
        num_sampled_ptr=counts,
        num_rejected_ptr=rejected,
        seq_lens_ptr=ints(3, 8, 5),
        cu_num_logits_ptr=ints(0, 1, 4, 5),
        idx_mapping_ptr=ints(1, 0, 2),
        prefill_len_ptr=ints(4, 5, 5),
    )
    assert counts.tolist() == [0, 2, 1]
    assert rejected.tolist() == [0, 1, 0]


@pytest.mark.parametrize("counts_tokens", [True, False])
def test_requests_get_what_was_sampled(counts_tokens: bool) -> None:
    computed, last, lengths = ints(4, 5, 6), torch.tensor([0, 0, 0]), ints(3, 4, 5)
    every, bins = torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 50, dtype=torch.int32)
    run(
        "_post_update_kernel",
        (3,),
        idx_mapping_ptr=ints(2, -1, 0),
        num_computed_tokens_ptr=computed,
        last_sampled_tokens_ptr=last,
        output_bin_counts_ptr=bins if counts_tokens else None,
        sampled_tokens_ptr=torch.tensor([[11, 12], [13, 14], [15, 16]]),
        num_sampled_ptr=ints(2, 1, 0),
        num_rejected_ptr=ints(1, 0, 0),
        query_start_loc_ptr=ints(0, 3, 4, 6) if counts_tokens else None,
        all_token_ids_ptr=every,
        total_len_ptr=lengths,
    )
    assert last.tolist() == [0, 0, 12]
    assert lengths.tolist() == [3, 4, 7]
    assert every[2].tolist() == [0] * 5 + [11, 12, 0]
    assert not every[:2].any()
    assert computed.tolist() == ([6, 5, 8] if counts_tokens else [4, 5, 5])
    assert bins.sum() == (2 if counts_tokens else 0)
    assert bins[2, 11] == bins[2, 12] == int(counts_tokens)
