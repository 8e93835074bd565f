# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from vllm_ascend_moe.backends.ascend.loading import CheckpointNames, different
from vllm_ascend_moe.core.checksums import checksum, content_sum, named_slot_tensors

# Names


def weights(*experts: int) -> list[tuple[str, torch.Tensor]]:
    return [(f"model.layers.0.mlp.experts.{expert}.up_proj.weight", torch.rand(2, 3)) for expert in experts]


def test_a_weight_is_the_expert_of_its_name() -> None:
    names = CheckpointNames()
    for expert, (_, tensor) in zip((3, 11, 0), names.follow(weights(3, 11, 0)), strict=True):
        assert names.expert_of(tensor) == expert
        assert names.expert_of(tensor[:1]) == expert
        # A copy that was made on the way.
        assert names.expert_of(tensor.T.contiguous()) == expert


def test_weights_that_were_all_read_before_are_known_by_themselves() -> None:
    names = CheckpointNames()
    held = list(names.follow(weights(3, 11, 0)))
    assert [names.expert_of(tensor) for _, tensor in held] == [3, 11, 0]
    # Of a copy nothing says whose it is: better none than a wrong one.
    assert names.expert_of(held[0][1].clone()) is None


def test_what_stands_where_a_weight_was_is_not_taken_for_it() -> None:
    names = CheckpointNames()
    held = list(names.follow(weights(3)))
    address = held[0][1].data_ptr()
    del held
    for _ in range(100):
        other = torch.rand(2, 3)
        if other.data_ptr() == address:
            break
    assert names.expert_of(other) is None


def test_experts_in_one_tensor_are_told_by_where_they_start() -> None:
    names = CheckpointNames()
    together = torch.rand(4, 6, 3)
    for _, tensor in names.follow([("model.layers.0.mlp.experts.gate_up_proj", together)]):
        assert [names.expert_of(expert) for expert in tensor.chunk(2, dim=1)[1].unbind()] == [0, 1, 2, 3]


# Sums


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bfloat16, torch.float32, torch.int64])
def test_the_order_of_elements_does_not_change_their_sums(dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 100, (64, 33), generator=torch.Generator().manual_seed(0)).to(dtype)
    sums = content_sum(tensor)
    assert torch.equal(content_sum(tensor.T.contiguous()), sums)
    assert torch.equal(content_sum(tensor.T), sums)
    assert torch.equal(content_sum(tensor[:5]) + content_sum(tensor[5:]), sums)
    assert torch.equal(content_sum(torch.nn.functional.pad(tensor, (0, 7))), sums)
    other = tensor.clone()
    other[3, 4] += 1
    assert not torch.equal(content_sum(other), sums)


def test_long_tensors_are_summed_in_parts() -> None:
    tensor = torch.arange(3 * (1 << 16) + 5, dtype=torch.int32)
    assert content_sum(tensor)[0] == tensor.view(torch.int16).to(torch.int64).sum()
    expected = (tensor.to(torch.int64) * (2 * torch.arange(len(tensor)) + 1) * 2654435769).sum()
    assert checksum(tensor) == expected


# What is compared


def test_slots_that_differ_from_what_they_held_are_found() -> None:
    held = {"w": [[1, 1], [2, 4], [3, 9]]}
    assert different(held, held) == []
    assert different({"w": [[1, 1], [3, 9], [2, 4]]}, held) == [1, 2]
    assert different({"w": [[1, 1], [1, 1], [3, 9]]}, held) == [1]
    # All slots moved on by one.
    assert different({"w": [[3, 9], [1, 1], [2, 4]]}, held) == [0, 1, 2]


def test_another_form_of_all_slots_says_nothing_of_experts() -> None:
    held = {"w": [[1, 1], [2, 4], [3, 9]], "v": [[0, 0]]}
    assert different({"w": [[7, 7], [8, 8], [9, 1]]}, held) == []
    assert different({"other": [[1, 1]]}, held) == []
    assert different({"w": [[0, 0], [0, 0]]}, held) == []


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w13_weight = torch.nn.Parameter(torch.rand(3, 2, 2))
        self.scale = torch.nn.Parameter(torch.ones(1).expand(3), requires_grad=False)
        self.w2_weight_list = [torch.rand(2) for _ in range(3)]
        self.names = ["a", "b", "c"]
        self.none: list[torch.Tensor] = []


def test_lists_with_a_tensor_for_each_slot_are_found_beside_parameters() -> None:
    layer = Layer()
    assert set(named_slot_tensors(layer, 3)) == {"w13_weight", "w2_weight_list"}
    assert named_slot_tensors(layer, 3)["w2_weight_list"] == layer.w2_weight_list
    assert named_slot_tensors(layer, 2) == {}
    assert named_slot_tensors(layer, 0) == {}
