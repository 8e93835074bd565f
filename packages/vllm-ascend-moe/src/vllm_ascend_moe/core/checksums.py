# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Checksums of expert weights, by slot: whether a slot holds the bytes of the expert that it should.

`checksum` depends on the order of the bytes; `content_sum`, by which loading beside vllm-ascend is watched, does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Of a layer's parameters these are not a slot's, whatever their shape.
_NOT_BY_SLOT = {"e_score_correction_bias", "hash_indices_table"}
# Words that are summed at a time: their 64-bit copies are what takes memory.
_CHUNK = 1 << 22
# On a CPU what stays in its cache is several times as fast.
_CHUNK_CPU = 1 << 16
# torch_npu's number of the plain format.
_ND = 2
# An odd multiplier (2^32 over the golden ratio): no word's factor is zero modulo a power of two.
_MULTIPLIER = 2654435769


# What is held for each slot: a tensor [slots, …], or a list with one tensor a slot.
Slots = torch.Tensor | list[torch.Tensor]


def each_tensor(held: Iterable[Slots]) -> Iterator[torch.Tensor]:
    """Yield the tensors, also those of lists."""
    for slots in held:
        yield from slots if isinstance(slots, list) else [slots]


def slot_tensors(module: Any, num_slots: int) -> Iterator[torch.Tensor]:
    """Yield a layer's parameters that hold something for each slot, scales included.

    Args:
        module: what holds the parameters; its own and those of its submodules.
        num_slots: slots of this rank.
    """
    for name, parameter in module.named_parameters():
        if _is_by_slot(name, parameter, num_slots):
            yield parameter.data


def _is_by_slot(name: str, parameter: torch.Tensor, num_slots: int) -> bool:
    own = parameter.dim() > 0 and parameter.shape[0] == num_slots and parameter.stride(0) != 0
    return own and name.rpartition(".")[2] not in _NOT_BY_SLOT


def named_slot_tensors(module: Any, num_slots: int) -> dict[str, list[torch.Tensor]]:
    """Return what a layer holds for each slot, by name: its parameters, and lists with one tensor a slot.

    vllm-ascend replaces some parameters by such lists, so that a slot's part can be exchanged alone.

    Args:
        module: what holds them; its own and those of its submodules.
        num_slots: slots of this rank.
    """
    found = {
        name: list(parameter.data)
        for name, parameter in module.named_parameters()
        if _is_by_slot(name, parameter, num_slots)
    }
    for name, value in vars(module).items():
        is_by_slot = isinstance(value, list) and len(value) == num_slots > 0
        if is_by_slot and all(isinstance(tensor, torch.Tensor) for tensor in value):
            found[name] = value
    return found


def content_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return sums over a tensor's elements that their order does not change, nor zeros beside them.

    So they are the same before and after a transposition, padding, or a layout of the device's own, and those of a
    tensor are the sums of its parts'. They find accidents, not forgeries.

    Returns:
        int64 [2], on the tensor's device: of the elements' words of 8 or 16 bits, and of their squares.
    """
    word = torch.int8 if tensor.element_size() == 1 else torch.int16
    words = plain(tensor).reshape(-1).view(word)
    total = torch.zeros(2, dtype=torch.int64, device=words.device)
    size = _chunk(words)
    for start in range(0, words.numel(), size):
        part = words[start : start + size].to(torch.int32)  # a square of 16 bits fits
        total += torch.stack((part.sum(dtype=torch.int64), (part * part).sum(dtype=torch.int64)))
    return total


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose bytes can be read: on an NPU one may be in a format of the device's own.

    Not run on an NPU, where the cast to ND makes a copy.
    """
    tensor = tensor.detach()
    if tensor.device.type != "npu":
        return tensor
    cast: torch.Tensor = importlib.import_module("torch_npu").npu_format_cast(tensor, _ND)
    return cast


def _chunk(words: torch.Tensor) -> int:
    return _CHUNK_CPU if words.device.type == "cpu" else _CHUNK


def slot_checksums(tensors: Iterable[Slots], num_slots: int) -> torch.Tensor:
    """Return a checksum of each slot's bytes over all tensors.

    Words are weighted by their place and summed modulo 2^64, on the tensors' device. It finds accidents,
    not forgeries.

    Args:
        tensors: [slots, …], any dtype and layout, or lists with one a slot.
        num_slots: slots.

    Returns:
        int64 [slots], on the CPU.
    """
    total = torch.zeros(num_slots, dtype=torch.int64)
    for index, tensor in enumerate(tensors):
        sums = torch.stack([checksum(tensor[slot]) for slot in range(num_slots)])
        total = total * 31 + sums.cpu() + index
    return total


def checksum(slot: torch.Tensor) -> torch.Tensor:
    """Return the checksum of one tensor's bytes in their order: int64, on its device."""
    bytes_ = plain(slot).contiguous().reshape(-1).view(torch.uint8)
    if bytes_.numel() % 4 == 0 and bytes_.storage_offset() % 4:
        bytes_ = bytes_.clone()  # words must start at a multiple of their size
    words = bytes_.view(torch.int32) if bytes_.numel() % 4 == 0 else bytes_
    total = torch.zeros((), dtype=torch.int64, device=slot.device)
    size = _chunk(words)
    for start in range(0, words.numel(), size):
        part = words[start : start + size].to(torch.int64)
        place = torch.arange(start, start + len(part), dtype=torch.int64, device=slot.device)
        total += (part * (2 * place + 1) * _MULTIPLIER).sum()
    return total
