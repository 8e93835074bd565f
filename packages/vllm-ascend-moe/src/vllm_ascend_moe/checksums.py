# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Checksums of expert weights, by slot: whether a slot holds the bytes of the expert that it should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Of a layer's parameters these are not a slot's, whatever their shape.
_NOT_BY_SLOT = {"e_score_correction_bias", "hash_indices_table"}
# Words that are summed at a time: their 64-bit copies are what takes memory.
_CHUNK = 1 << 22
# An odd multiplier (2^32 over the golden ratio): no word's factor is zero modulo a power of two.
_MULTIPLIER = 2654435769


def slot_tensors(module: Any, num_slots: int) -> Iterator[torch.Tensor]:  # noqa: ANN401 - vLLM's RoutedExperts
    """Yield a layer's parameters that hold something for each slot, scales included.

    Args:
        module: what holds the parameters; its own and those of its submodules.
        num_slots: slots of this rank.
    """
    for name, parameter in module.named_parameters():
        own = parameter.dim() > 0 and parameter.shape[0] == num_slots and parameter.stride(0) != 0
        if own and name.rpartition(".")[2] not in _NOT_BY_SLOT:
            yield parameter.data


def slot_checksums(tensors: Iterable[torch.Tensor], num_slots: int) -> torch.Tensor:
    """Return a checksum of each slot's bytes over all tensors.

    Words are weighted by their place and summed modulo 2^64, on the tensors' device. It finds accidents,
    not forgeries.

    Args:
        tensors: [slots, …], any dtype and layout.
        num_slots: slots.

    Returns:
        int64 [slots], on the CPU.
    """
    total = torch.zeros(num_slots, dtype=torch.int64)
    for index, tensor in enumerate(tensors):
        sums = torch.stack([_checksum(tensor[slot]) for slot in range(num_slots)])
        total = total * 31 + sums.cpu() + index
    return total


def _checksum(slot: torch.Tensor) -> torch.Tensor:
    bytes_ = slot.contiguous().reshape(-1).view(torch.uint8)
    if bytes_.numel() % 4 == 0 and bytes_.storage_offset() % 4:
        bytes_ = bytes_.clone()  # words must start at a multiple of their size
    words = bytes_.view(torch.int32) if bytes_.numel() % 4 == 0 else bytes_
    total = torch.zeros((), dtype=torch.int64, device=slot.device)
    for start in range(0, words.numel(), _CHUNK):
        part = words[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(start, start + len(part), dtype=torch.int64, device=slot.device)
        total += (part * (2 * place + 1) * _MULTIPLIER).sum()
    return total
