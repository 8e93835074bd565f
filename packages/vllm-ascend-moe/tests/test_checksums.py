# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from vllm_ascend_moe.core import checksums
from vllm_ascend_moe.core.checksums import slot_checksums, slot_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPES = (torch.int8, torch.bfloat16, torch.float32)


def random(slots: int, shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return random bytes as a tensor [slots, …], NaN and −0.0 among them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty((), dtype=dtype).element_size()
    bytes_ = torch.randint(0, 256, (slots, *shape, size), dtype=torch.uint8, generator=generator)
    return bytes_.view(dtype).reshape(slots, *shape)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


@st.composite
def layers(draw: st.DrawFn) -> list[torch.Tensor]:
    """Draw a layer's tensors: weights and scales of some slots, of any dtype, with odd byte counts too."""
    slots = draw(st.integers(1, 4))
    shapes = st.lists(st.integers(1, 5), min_size=0, max_size=3)
    number = draw(st.integers(1, 4))
    return [
        random(slots, draw(shapes), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32)))
        for _ in range(number)
    ]


# Equal bytes, equal sums


@examples(deadline=None, max_examples=50)
@given(layers())
def test_a_slot_has_a_sum_and_equal_bytes_have_equal_ones(layer: list[torch.Tensor]) -> None:
    slots = len(layer[0])
    sums = slot_checksums(layer, slots)
    assert (sums.dtype, sums.shape, sums.device.type) == (torch.int64, (slots,), "cpu")
    # Copies elsewhere in memory, and given by an iterator as `slot_tensors` gives them.
    assert torch.equal(slot_checksums((tensor.clone() for tensor in layer), slots), sums)
    # Bytes count, not what they stand for.
    raw = [as_bytes(tensor).view(slots, -1) for tensor in layer]
    assert torch.equal(slot_checksums(raw, slots), sums)


@examples(deadline=None, max_examples=40)
@given(layers(), st.data())
def test_sums_move_with_the_slots(layer: list[torch.Tensor], data: st.DataObject) -> None:
    slots = len(layer[0])
    order = torch.tensor(data.draw(st.permutations(range(slots))))
    moved = [tensor[order] for tensor in layer]
    assert torch.equal(slot_checksums(moved, slots), slot_checksums(layer, slots)[order])
    # A copy of an expert has its sum on whatever slot.
    copies = [tensor[[0] * 3] for tensor in layer]
    assert set(slot_checksums(copies, 3).tolist()) == {slot_checksums(layer, slots)[0].item()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 8), (3, 5)])
def test_the_layout_in_memory_does_not_count(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    plain = random(3, shape, dtype, 0)
    wanted = slot_checksums([plain], 3)
    transposed = plain.transpose(1, 2).contiguous().transpose(1, 2)
    slots_last = plain.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    every_other = torch.stack([plain, random(3, shape, dtype, 1)], dim=-1)[..., 0]
    wide = torch.cat([plain, plain], dim=2)[:, :, : shape[1]]
    for tensor in (transposed, slots_last, every_other, wide):
        assert not tensor.is_contiguous()
        assert torch.equal(slot_checksums([tensor], 3), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_a_slot_starts_in_memory_does_not_count(dtype: torch.dtype) -> None:
    plain = random(2, (8,), dtype, 0)
    wanted = slot_checksums([plain], 2)
    for offset in (1, 2, 3, 4):
        shifted = torch.cat([random(2, (offset,), dtype, 1), plain], dim=1)[:, offset:]
        assert torch.equal(slot_checksums([shifted], 2), wanted)


def test_long_slots_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = [random(2, (7, 12), torch.bfloat16, 0), random(2, (13,), torch.int8, 1)]
    wanted = slot_checksums(layer, 2)
    for words in (1, 5, 42, 1000):
        monkeypatch.setattr(checksums, "_CHUNK", words)
        assert torch.equal(slot_checksums(layer, 2), wanted)


def test_nothing_and_empty_slots_have_sums_too() -> None:
    assert slot_checksums([], 3).tolist() == [0, 0, 0]
    assert slot_checksums([torch.empty(2, 0)], 2).shape == (2,)


# Other bytes, other sums


@examples(deadline=None, max_examples=150)
@given(layers(), st.data())
def test_any_changed_bit_changes_the_sum_of_its_slot_alone(
    layer: list[torch.Tensor], data: st.DataObject
) -> None:
    slots = len(layer[0])
    before = slot_checksums(layer, slots)
    tensor = data.draw(st.sampled_from(layer), label="tensor")
    bytes_ = as_bytes(tensor)
    place = data.draw(st.integers(0, len(bytes_) - 1), label="byte")
    bytes_[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    changed = slot_checksums(layer, slots) != before
    slot = place // (len(bytes_) // slots)
    assert changed.tolist() == [other == slot for other in range(slots)]


@examples(deadline=None, max_examples=100)
@given(layers(), st.data())
def test_swapped_elements_change_the_sum(layer: list[torch.Tensor], data: st.DataObject) -> None:
    slots = len(layer[0])
    before = slot_checksums(layer, slots)
    tensor = data.draw(st.sampled_from(layer), label="tensor")
    slot = data.draw(st.integers(0, slots - 1))
    values = tensor[slot].reshape(-1)
    first, second = (data.draw(st.integers(0, len(values) - 1)) for _ in range(2))
    same = torch.equal(as_bytes(values[first]), as_bytes(values[second]))
    values[[first, second]] = values[[second, first]]
    assert (slot_checksums(layer, slots)[slot] == before[slot]).item() is same


@pytest.mark.parametrize("dtype", DTYPES)
def test_swapped_slots_change_the_sums(dtype: torch.dtype) -> None:
    layer = [random(4, (6, 8), dtype, 0), random(4, (6,), torch.float32, 1)]
    before = slot_checksums(layer, 4)
    assert len(set(before.tolist())) == 4
    swapped = torch.tensor([0, 2, 1, 3])
    assert (slot_checksums([tensor[swapped] for tensor in layer], 4) != before).tolist() == [
        False,
        True,
        True,
        False,
    ]
    # The scales of one expert with the weights of another are neither of the two.
    mixed = slot_checksums([layer[0], layer[1][swapped]], 4)
    assert not set(mixed[1:3].tolist()) & set(before.tolist())


def test_swapped_rows_and_halves_change_the_sums() -> None:
    for dtype in DTYPES:
        tensor = random(2, (8, 6), dtype, 3)
        before = slot_checksums([tensor], 2)
        rows = tensor[:, torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])]
        halves = torch.cat([tensor[:, 4:], tensor[:, :4]], dim=1)  # gate and up
        turned = tensor.transpose(1, 2)
        for other in (rows, halves, turned):
            assert (slot_checksums([other], 2) != before).all()


def test_tensors_have_their_places() -> None:
    first, second = random(2, (8,), torch.float32, 0), random(2, (8,), torch.float32, 1)
    before = slot_checksums([first, second], 2)
    assert (slot_checksums([second, first], 2) != before).all()
    assert (slot_checksums([first], 2) != before).all()
    assert (slot_checksums([first, second, torch.zeros(2, 3)], 2) != before).all()
    # Zeros in the place of weights that were not loaded are noticed as well.
    assert (slot_checksums([first, torch.zeros(2, 8)], 2) != before).all()


def test_values_that_compare_equal_have_other_bytes() -> None:
    zeros = torch.zeros(1, 4)
    negative = zeros.clone()
    negative[0, 2] = -0.0
    assert torch.equal(zeros, negative)
    assert slot_checksums([zeros], 1) != slot_checksums([negative], 1)


# Which parameters are a slot's


class Experts(torch.nn.Module):
    """What a layer of quantised experts holds, four slots of them, among other things."""

    def __init__(self) -> None:
        super().__init__()

        def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)

        self.w13_weight = parameter(4, 6, 8, dtype=torch.int8)
        self.w13_weight_scale = parameter(4, 6, 1)
        self.w2_bias = parameter(4, dtype=torch.bfloat16)
        self.router = torch.nn.Module()
        self.router.e_score_correction_bias = parameter(4)
        self.router.hash_indices_table = parameter(4, 2)
        self.router.weight = parameter(16, 8)
        self.inner = torch.nn.Module()
        self.inner.w2_weight = torch.nn.Parameter(torch.ones(4, 3, 3))
        # One value for all slots, as static input scales are: moving experts does not move it.
        self.shared_scale = torch.nn.Parameter(torch.ones(1).expand(4), requires_grad=False)
        self.scalar = parameter()
        self.e_score_correction_bias = parameter(4)
        self.register_buffer("expert_map", torch.zeros(4))


def test_parameters_by_slot_are_found_scales_included() -> None:
    module = Experts()
    found = list(slot_tensors(module, 4))
    wanted = ("w13_weight", "w13_weight_scale", "w2_bias", "inner.w2_weight")
    live = dict(module.named_parameters())
    assert [tensor.data_ptr() for tensor in found] == [live[name].data_ptr() for name in wanted]
    assert not any(tensor.requires_grad for tensor in found)
    assert len(slot_checksums(found, 4)) == 4
    assert [list(tensor.shape) for tensor in slot_tensors(module, 16)] == [[16, 8]]
    assert not list(slot_tensors(module, 5))


def test_a_change_of_a_live_parameter_is_seen() -> None:
    module = Experts()
    before = slot_checksums(slot_tensors(module, 4), 4)
    module.w13_weight_scale.data[2, 5, 0] = 1e-30
    after = slot_checksums(slot_tensors(module, 4), 4)
    assert (before != after).tolist() == [False, False, True, False]
