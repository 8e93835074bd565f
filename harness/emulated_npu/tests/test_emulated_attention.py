# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch_npu.ops import attention, mla


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def obvious(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, *, causal: bool
) -> torch.Tensor:
    """Attend by a loop: [q, heads, D] to [n, KV heads, …]."""
    out = torch.empty(query.shape[0], query.shape[1], values.shape[-1])
    for q in range(query.shape[0]):
        seen = keys.shape[0] - query.shape[0] + q + 1 if causal else keys.shape[0]
        for head in range(query.shape[1]):
            group = head * keys.shape[1] // query.shape[1]
            weights = [math.exp(scale * float(query[q, head] @ keys[n, group])) for n in range(seen)]
            parts = [weight / sum(weights) * values[n, group] for n, weight in enumerate(weights)]
            out[q, head] = torch.stack(parts).sum(0)
    return out


@pytest.mark.parametrize("causal", [True, False])
def test_each_sequence_attends_to_itself(causal: bool) -> None:
    lengths = [3, 1, 4]
    ends = [3, 4, 8]
    query, key, value = draw(10, 4, 6), draw(8, 2, 6, seed=1), draw(8, 2, 5, seed=2)
    out, lse = attention.npu_fused_infer_attention_score(
        query,
        key,
        value,
        actual_seq_lengths=ends,
        actual_seq_lengths_kv=ends,
        num_heads=4,
        num_key_value_heads=2,
        scale=0.4,
        input_layout="TND",
        sparse_mode=3 if causal else 0,
        softmax_lse_flag=True,
    )
    for length, end in zip(lengths, ends, strict=True):
        rows = slice(end - length, end)
        torch.testing.assert_close(
            out[rows], obvious(query[rows], key[rows], value[rows], 0.4, causal=causal)
        )
    # What belongs to no sequence is undefined.
    assert out[8:].isnan().all()
    assert lse[8:].isnan().all()
    last = [
        math.log(sum(math.exp(0.4 * float(query[7, h] @ key[n, h // 2])) for n in range(4, 8)))
        for h in range(4)
    ]
    assert lse[7, :, 0].tolist() == pytest.approx(last, abs=1e-5)


@pytest.mark.parametrize("stacked", [False, True], ids=["BBH", "BNBD"])
def test_paged_keys_are_found_by_the_block_table(stacked: bool) -> None:
    blocks = torch.tensor([[4, 1], [0, 9]], dtype=torch.int32)
    keys, values = draw(5, 4, 2, 6), draw(5, 4, 2, 6, seed=1)
    query, lengths, ends = draw(5, 4, 6, seed=2), [7, 2], [3, 5]
    shape = (5, 4, -1)
    out, _ = attention.npu_fused_infer_attention_score(
        query,
        keys.transpose(1, 2) if stacked else keys.view(shape),
        values.transpose(1, 2) if stacked else values.view(shape),
        actual_seq_lengths=ends,
        actual_seq_lengths_kv=lengths,
        block_table=blocks,
        block_size=4,
        num_heads=4,
        num_key_value_heads=2,
        scale=0.4,
        input_layout="TND",
        sparse_mode=3,
        atten_mask=torch.ones(1),
    )
    for row, (start, end) in enumerate([(0, 3), (3, 5)]):
        mine = [(blocks[row, at // 4], at % 4) for at in range(lengths[row])]
        of = [torch.stack([cache[block, place] for block, place in mine]) for cache in (keys, values)]
        torch.testing.assert_close(out[start:end], obvious(query[start:end], of[0], of[1], 0.4, causal=True))


@pytest.mark.parametrize("layout", ["BNSD_NBSD", "BSND_NBSD", "BNSD", "BSND"])
def test_latent_attention_reads_one_head_and_adds_what_is_turned(layout: str) -> None:
    blocks, lengths = torch.tensor([[1, 2], [0, 1]], dtype=torch.int32), [6, 3]
    latent, rope = draw(3, 1, 4, 8), draw(3, 1, 4, 2, seed=1)
    query, query_rope = draw(2, 3, 1, 8, seed=2), draw(2, 3, 1, 2, seed=3)
    first = [part if layout.startswith("BNSD") else part.transpose(1, 2) for part in (query, query_rope)]
    out, _ = attention.npu_fused_infer_attention_score_v2(
        first[0],
        latent,
        latent,
        query_rope=first[1],
        key_rope=rope,
        actual_seq_kvlen=lengths,
        block_table=blocks,
        block_size=4,
        num_query_heads=3,
        num_key_value_heads=1,
        softmax_scale=0.3,
        input_layout=layout,
    )
    for row, length in enumerate(lengths):
        mine = [(blocks[row, at // 4], at % 4) for at in range(length)]
        keys = torch.stack([latent[block, :, place] for block, place in mine])
        turned = torch.stack([rope[block, :, place] for block, place in mine])
        wanted = obvious(
            torch.cat((query, query_rope), -1)[row].transpose(0, 1),
            torch.cat((keys, turned), -1),
            keys,
            0.3,
            causal=False,
        )  # [1, heads, 8]
        axes = {"NBSD": (1, 2, 0, 3), "BNSD": (0, 2, 1, 3), "BSND": (0, 1, 2, 3)}
        by_batch = out.permute(axes[layout.partition("_")[2] or layout])  # [B, S, heads, 8]
        torch.testing.assert_close(by_batch[row], wanted)


def test_tokens_may_come_back_by_head() -> None:
    query, key = draw(3, 2, 4), draw(3, 2, 4, seed=1)
    options: dict[str, Any] = {
        "actual_seq_qlen": [3],
        "actual_seq_kvlen": [3],
        "num_query_heads": 2,
        "sparse_mode": 3,
    }
    by_token, _ = attention.npu_fused_infer_attention_score_v2(query, key, key, input_layout="TND", **options)
    by_head, _ = attention.npu_fused_infer_attention_score_v2(
        query, key, key, input_layout="TND_NTD", **options
    )
    assert torch.equal(by_head, by_token.transpose(0, 1))


def test_parts_of_the_keys_are_joined() -> None:
    query, keys, values = draw(5, 2, 4), draw(9, 2, 4, seed=1), draw(9, 2, 3, seed=2)
    parts = [
        attention.attend(query, keys[part], values[part], 0.5, causal=False)
        for part in (slice(4), slice(4, 9))
    ]
    out, _ = attention.npu_attention_update(
        [lse.reshape(-1) for _, lse in parts], [part.reshape(-1, 3) for part, _ in parts], 0
    )
    torch.testing.assert_close(out.view(5, 2, 3), obvious(query, keys, values, 0.5, causal=False))
    with pytest.raises(NotImplementedError, match="update_type is 1; expected 0"):
        attention.npu_attention_update([], [], 1)


@pytest.mark.parametrize(
    "changes", [{"input_layout": "BSH"}, {"sparse_mode": 4}, {"sparse_mode": 0, "atten_mask": torch.ones(1)}]
)
def test_other_layouts_and_modes_are_refused(changes: dict[str, Any]) -> None:
    options: dict[str, Any] = {"input_layout": "TND", "sparse_mode": 3, "actual_seq_lengths": [1], **changes}
    with pytest.raises(
        NotImplementedError, match=r"npu_fused_infer_attention_score: .*; expected one of TND"
    ):
        attention.npu_fused_infer_attention_score(*[torch.zeros(1, 1, 1)] * 3, **options)


def test_batches_of_matrices_are_multiplied_with_axes_in_any_order() -> None:
    x, weight = draw(2, 3, 4), draw(2, 4, 5, seed=1)
    wanted = torch.stack([x[batch] @ weight[batch] for batch in range(2)])
    found = mla.npu_transpose_batchmatmul(x.permute(1, 0, 2), weight, perm_x1=(1, 0, 2), perm_y=(1, 0, 2))
    torch.testing.assert_close(found, wanted.transpose(0, 1))
    torch.testing.assert_close(mla.npu_transpose_batchmatmul(x, weight.mT, perm_x2=(0, 2, 1)), wanted)


def test_rings_are_joined_in_place() -> None:
    # Two sequences of 2 and 1 tokens, after 3 and 0 tokens that are cached.
    query, rope = draw(3, 2, 4), draw(3, 2, 2, seed=1)
    own, before = (
        [draw(3, 2, size, seed=size) for size in (4, 2, 5)],
        [draw(3, 2, size, seed=9 + size) for size in (4, 2, 5)],
    )
    output, lse = torch.empty(3, 2, 5), torch.empty(2, 3)
    options: dict[str, Any] = {
        "q_nope": query,
        "q_rope": rope,
        "qk_scale": 0.4,
        "output": output,
        "softmax_lse": lse,
    }
    mla.npu_ring_mla(
        k_nope=own[0], k_rope=own[1], value=own[2], seqlen=torch.tensor([2, 1]), mask_type="mask_type_triu",
        calc_type="calc_type_first_ring", mask=None, **options,
    )  # fmt: skip
    q = torch.cat((query, rope), -1)
    k, past = torch.cat(own[:2], -1), torch.cat(before[:2], -1)
    for rows in (slice(0, 2), slice(2, 3)):
        torch.testing.assert_close(output[rows], obvious(q[rows], k[rows], own[2][rows], 0.4, causal=True))
    mla.npu_ring_mla(
        k_nope=before[0], k_rope=before[1], value=before[2], seqlen=torch.tensor([[2, 1], [3, 0]]), mask_type="no_mask",
        calc_type="calc_type_default", pre_out=output, prev_lse=lse, **options,
    )  # fmt: skip
    whole = obvious(q[:2], torch.cat((past, k[:2])), torch.cat((before[2], own[2][:2])), 0.4, causal=True)
    torch.testing.assert_close(output[:2], whole)
    torch.testing.assert_close(output[2:], obvious(q[2:], k[2:], own[2][2:], 0.4, causal=True))
    with pytest.raises(NotImplementedError, match="npu_ring_mla: mask_type_band, calc_type_first_ring"):
        mla.npu_ring_mla(
            k_nope=own[0], k_rope=own[1], value=own[2], seqlen=torch.tensor([2, 1]), mask_type="mask_type_band",
            calc_type="calc_type_first_ring", **options,
        )  # fmt: skip
