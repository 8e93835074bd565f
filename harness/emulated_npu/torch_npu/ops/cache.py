# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Writes to the paged KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_npu._registry import ATB, CUSTOM, NPU, given

if TYPE_CHECKING:
    import torch


def write(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Write rows to their slots; a slot below 0 is padding.

    Args:
        cache: [blocks, block size, …]; it may be a view with gaps.
        rows: [n, …], as many values each as a slot has.
        slots: [n or fewer], block · block size + place.

    Raises:
        IndexError: a slot is past the cache.
    """
    slots = slots.long()
    if slots.numel() and int(slots.max()) >= cache.shape[0] * cache.shape[1]:
        msg = f"slot {int(slots.max())} of the KV cache; expected one below {cache.shape[0] * cache.shape[1]}"
        raise IndexError(msg)
    kept = slots >= 0
    block, place = slots[kept] // cache.shape[1], slots[kept] % cache.shape[1]
    cache[block, place] = rows[: len(slots)][kept].view(-1, *cache.shape[2:]).to(cache.dtype)


@given(ATB, "_npu_reshape_and_cache")
def npu_reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_indices: torch.Tensor,
) -> None:
    """Write keys and values to their slots."""
    write(key_cache, key, slot_indices)
    write(value_cache, value, slot_indices)


@given(NPU, "npu_scatter_pa_kv_cache")
@given(CUSTOM, "npu_scatter_pa_kv_cache")
def npu_scatter_pa_kv_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    cache_mode: str = "Norm",
) -> None:
    """Write keys and values to their slots; a wheel whose schema has no cache_mode has the plain one only.

    Raises:
        NotImplementedError: the cache has an NZ format.
    """
    if cache_mode != "Norm":
        msg = f"npu_scatter_pa_kv_cache: cache_mode is {cache_mode!r}; expected 'Norm'"
        raise NotImplementedError(msg)
    write(key_cache, key, slot_mapping)
    write(value_cache, value, slot_mapping)
