# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch_npu.ops import cache, mla


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "write", [cache.npu_reshape_and_cache, lambda *a: cache.npu_scatter_pa_kv_cache(*a, cache_mode="Norm")]
)
def test_rows_go_to_their_slots_and_padding_nowhere(write: object) -> None:
    key, value = draw(4, 2, 3), draw(4, 2, 5, seed=1)
    # The caches are views with gaps, as vllm-ascend's are where keys and values share a tensor.
    keys, values = torch.zeros(3, 2, 4, 2, 3)[:, 0], torch.zeros(3, 4, 2, 5)
    slots = torch.tensor([9, -1, 0, 6], dtype=torch.int32)
    write(key, value, keys, values, slots)  # type: ignore[operator]
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert torch.equal(keys[slot // 4, slot % 4], key[row])
            assert torch.equal(values[slot // 4, slot % 4], value[row])
    assert int((keys != 0).sum()) == 3 * 6
    with pytest.raises(IndexError, match="slot 12 of the KV cache; expected one below 12"):
        write(key, value, keys, values, torch.tensor([12]))  # type: ignore[operator]


def test_an_nz_cache_is_refused() -> None:
    x = torch.zeros(1, 1, 1)
    with pytest.raises(NotImplementedError, match="cache_mode is 'PA_NZ'; expected 'Norm'"):
        cache.npu_scatter_pa_kv_cache(x, x, x, x, torch.zeros(1), cache_mode="PA_NZ")


def test_latents_are_normed_the_rest_is_turned_and_both_are_cached() -> None:
    kv, gamma = draw(3, 1, 1, 10), draw(6, seed=1)
    angles = draw(3, 1, 1, 4, seed=2)
    k_cache, c_cache = torch.zeros(2, 4, 1, 4), torch.zeros(2, 4, 1, 6)
    slots = torch.tensor([5, -1, 2])
    found = mla.npu_kv_rmsnorm_rope_cache(
        kv,
        gamma,
        angles.cos(),
        angles.sin(),
        slots,
        k_cache,
        c_cache,
        epsilon=1e-6,
        cache_mode="PA",
        is_output_kv=True,
    )
    assert found[0] is k_cache
    assert found[1] is c_cache
    for row, slot in enumerate(slots.tolist()):
        latent = kv[row, 0, 0, :6]
        normed = latent / (latent.pow(2).mean() + 1e-6).sqrt() * gamma
        turned = mla.npu_interleave_rope(kv[row, ..., 6:], angles[row].cos(), angles[row].sin())
        torch.testing.assert_close(found[3][row, 0, 0], normed)
        torch.testing.assert_close(found[2][row], turned)
        if slot >= 0:
            torch.testing.assert_close(c_cache[slot // 4, slot % 4, 0], normed)
            torch.testing.assert_close(k_cache[slot // 4, slot % 4], turned[0])
    assert int((c_cache != 0).sum()) == 2 * 6
    unwanted = mla.npu_kv_rmsnorm_rope_cache(
        kv, gamma, angles.cos(), angles.sin(), slots, k_cache, c_cache, cache_mode="PA_BNSD"
    )
    assert unwanted[2].isnan().all()
    assert unwanted[3].isnan().all()
    with pytest.raises(NotImplementedError, match="cache_mode is 'PA_NZ'"):
        mla.npu_kv_rmsnorm_rope_cache(kv, gamma, angles, angles, slots, k_cache, c_cache, cache_mode="PA_NZ")


def test_a_part_of_each_sequence_is_read_back() -> None:
    keys, values = draw(5, 4, 1, 3), draw(5, 4, 1, 2, seed=1)
    blocks = torch.tensor([[2, 0], [4, 1]], dtype=torch.int32)
    key, value = torch.empty(7, 1, 3), torch.empty(7, 1, 2)
    mla.npu_paged_cache_load(
        keys, values, blocks, torch.tensor([5, 2]), seq_starts=torch.tensor([3, 1]), key=key, value=value
    )
    other = torch.empty_like(key), torch.empty_like(value)
    mla.npu_gather_pa_kv_cache(
        keys, values, blocks, torch.tensor([5, 2]), *other, seq_offset=torch.tensor([3, 1])
    )
    assert torch.equal(other[0], key)
    assert torch.equal(other[1], value)
    wanted = [(0, at) for at in range(3, 8)] + [(1, 1), (1, 2)]
    for row, (sequence, at) in enumerate(wanted):
        assert torch.equal(key[row], keys[blocks[sequence, at // 4], at % 4])
        assert torch.equal(value[row], values[blocks[sequence, at // 4], at % 4])
