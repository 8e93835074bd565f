# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch_npu.ops import mla, rotary


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(positions: int, size: int) -> tuple[torch.Tensor, list[list[float]]]:
    angles = [[position / 10 ** (2 * i / size) for i in range(size // 2)] for position in range(positions)]
    return torch.tensor([[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles]), angles


def obvious(head: list[float], angles: list[float], *, halves: bool) -> list[float]:
    turned, half = list(head), len(angles)
    for i, angle in enumerate(angles):
        a, b = (i, half + i) if halves else (2 * i, 2 * i + 1)
        turned[a] = head[a] * math.cos(angle) - head[b] * math.sin(angle)
        turned[b] = head[b] * math.cos(angle) + head[a] * math.sin(angle)
    return turned


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("rotated", [6, 4])
def test_each_pair_is_turned_by_its_tokens_angle(halves: bool, rotated: int) -> None:
    size, positions = 6, torch.tensor([3, 0, 7])
    cache, angles = table(8, rotated)
    query, key = draw(3, 2 * size), draw(3, size, seed=1)
    wanted = [
        [
            obvious(head.tolist()[:rotated], angles[position], halves=halves) + head.tolist()[rotated:]
            for head in row.view(-1, size)
        ]
        for row, position in zip(torch.cat((query, key), 1), positions.tolist(), strict=True)
    ]
    q, k = rotary.npu_mrope(
        positions, query, key, cache, size, rotary_mode="half" if halves else "interleave"
    )
    torch.testing.assert_close(torch.cat((q, k), 1).view(3, 3, size), torch.tensor(wanted))
    rotary.npu_rotary_embedding(positions, query, key, size, cache, halves)
    assert torch.equal(q, query)
    assert torch.equal(k, key)


def test_positions_of_several_axes_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"npu_mrope: positions are \[3, 2\]; expected \[T\]"):
        rotary.npu_mrope(torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(1, 2), 2)


@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_mul_turns_pairs_by_cosines_of_full_width(mode: str) -> None:
    head = draw(1, 1, 1, 6)
    _, angles = table(8, 6)
    wide = angles[5] * 2 if mode == "half" else [angle for angle in angles[5] for _ in range(2)]
    found = mla.npu_rotary_mul(head, torch.tensor(wide).cos(), torch.tensor(wide).sin(), mode)
    wanted = obvious(head.flatten().tolist(), angles[5], halves=mode == "half")
    torch.testing.assert_close(found.flatten(), torch.tensor(wanted))


def test_interleaved_pairs_come_out_as_halves() -> None:
    head = draw(2, 3, 1, 6)
    _, angles = table(8, 6)
    wide = torch.tensor(angles[4] * 2)
    found = mla.npu_interleave_rope(head, wide.cos(), wide.sin())
    for row, turned in zip(head.view(-1, 6).tolist(), found.view(-1, 6).tolist(), strict=True):
        pairs = obvious(row, angles[4], halves=False)
        assert turned == pytest.approx(pairs[::2] + pairs[1::2], abs=1e-6)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="rotary_mode is 'quarter'"):
        mla.npu_rotary_mul(torch.zeros(1, 1, 1, 2), torch.zeros(2), torch.zeros(2), "quarter")
