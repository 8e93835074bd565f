# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's packed kernel for experts on a CPU, where the installed vLLM has one; its weights are packed once.

Importing this module loads no vLLM; packing experts does, if one is installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# The kernel's widest tile of each axis.
_ALIGNMENT = 32
# A slot's rows, on average, up to which the kernel is the quicker one in 16 bits; with more of them torch's product, which
# uses the CPU's instructions for bfloat16, is. Measured on an AMD EPYC with AVX-512; in float32 the kernel always is.
_FEW_ROWS = 16
_UNSIGNED: dict[Any, Any] = {np.dtype(np.int32): np.dtype(np.uint32), np.dtype(np.int64): np.dtype(np.uint64)}


@dataclass(frozen=True, eq=False)
class PackedExperts:
    """A rank's experts as vLLM's kernel reads them, in slot order; made by `pack_experts`.

    Attributes:
        w13: gate and up projections, packed, [slots, 2·I, H].
        w2: down projection, packed, [slots, H, I].
        instructions: vLLM's name of the instruction set that they are packed for.
    """

    w13: torch.Tensor
    w2: torch.Tensor
    instructions: str

    def is_quicker(self, hidden_states: torch.Tensor, entries: int) -> bool:
        """Return whether the kernel can and should serve so many entries of such tokens."""
        if hidden_states.dtype != self.w13.dtype or hidden_states.requires_grad:
            return False
        return self.w13.dtype == torch.float32 or entries <= _FEW_ROWS * len(self.w13)

    def apply(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        *,
        expert_map: torch.Tensor | None = None,
        first_physical: int = 0,
    ) -> torch.Tensor:
        """Return this rank's contribution to the layer; see `experts.apply_experts`.

        By NumPy, whose calls on a few numbers take a tenth of torch's where the weights have just emptied the caches.
        """
        slots, local = topk_ids.numpy(), topk_ids
        if expert_map is not None or first_physical:
            table = None if expert_map is None else expert_map.numpy()
            moved = slots - first_physical if table is None else table.take(np.maximum(slots, 0))
            slots = np.where(slots < 0, -1, moved)
        if slots.dtype != np.int32 or expert_map is not None or first_physical:
            local = torch.from_numpy(slots.astype(np.int32, copy=False))
        output = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        # As an unsigned number −1 is past the last slot.
        unsigned: NDArray[Any] = slots.view(_UNSIGNED[slots.dtype])
        if unsigned.max() < len(self.w13):
            self._run(output, hidden_states, topk_weights, local)
        else:
            here = torch.from_numpy(unsigned < len(self.w13))
            add_local(self._run, output, hidden_states, topk_weights, local, here)
        return output

    def _run(
        self, output: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor, slots: torch.Tensor
    ) -> None:
        vllm = _functions()
        # The kernel looks at no strides.
        arguments = rows.contiguous(), self.w13, self.w2, None, None, weights.float().contiguous()
        vllm.cpu_fused_moe(output, *arguments, slots.contiguous(), "silu", self.instructions)


def pack_experts(w13: torch.Tensor, w2: torch.Tensor) -> PackedExperts | None:
    """Pack experts for vLLM's kernel, beside the weights as they are: as many bytes again.

    Args:
        w13: gate and up projections, [slots, H, 2·I], as `experts.ExpertWeights` has them.
        w2: down projection, [slots, I, H], likewise.

    Returns:
        None where the kernel cannot serve them: no vLLM with such a kernel is installed, they are not on a CPU, they are
        int8, or an axis is no multiple of 32.
    """
    _, hidden, double = w13.shape
    fits = w13.is_cpu and w13.is_floating_point() and hidden % _ALIGNMENT == 0
    if not fits or double % (2 * _ALIGNMENT) or not _works(w13.dtype):
        return None
    return _pack(w13, w2)


def add_local(
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None],
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    slots: torch.Tensor,
    here: torch.Tensor,
) -> None:
    """Have a kernel that knows of no other ranks serve the entries that are here, each as a row of one expert.

    Args:
        run: called with an output [N, H], rows [N, H], weights [N, 1] and slots [N, 1]; writes the output.
        output: [T, H], written: zeros for tokens without an entry here.
        hidden_states: [T, H].
        topk_weights: [T, K].
        slots: [T, K]; what stands where an entry is not here is not read.
        here: bool [T, K].
    """
    token = here.nonzero()[:, 0]
    rows = output.new_empty(len(token), output.shape[1])
    if len(token):
        # Indexing by a tensor copies element by element: three to seven times as slow.
        run(rows, hidden_states.index_select(0, token), topk_weights[here][:, None], slots[here][:, None])
    # Added in 32 bits, as vLLM's kernel adds a token's experts.
    if output.dtype == torch.float32:
        output.zero_().index_add_(0, token, rows)
        return
    total = torch.zeros(output.shape, dtype=torch.float32, device=output.device)
    output.copy_(total.index_add_(0, token, rows.float()))


def instructions(dtype: torch.dtype) -> str:
    """Return the instruction set that vLLM's own experts choose on this CPU."""
    if dtype == torch.bfloat16:
        if platform.machine() in {"aarch64", "arm64"}:
            return "neon"
        amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        if amx is not None and amx():
            return "amx"
    return "vec"


@functools.cache
def _functions() -> Any:  # noqa: ANN401 - a module of vLLM's
    """Return vLLM's module of compiled functions, None without one that has this kernel."""
    if importlib.util.find_spec("vllm") is None:
        return None
    try:
        module = importlib.import_module("vllm._custom_ops")
    except (ImportError, OSError, RuntimeError):
        return None
    return module if hasattr(module, "cpu_fused_moe") and hasattr(module, "cpu_prepack_moe_weight") else None


def _pack(w13: torch.Tensor, w2: torch.Tensor) -> PackedExperts:
    # vLLM's weights are [slots, out, in]; these here are their transposes.
    chosen, vllm = instructions(w13.dtype), _functions()
    first, second = (
        vllm.cpu_prepack_moe_weight(one.transpose(1, 2).contiguous(), chosen) for one in (w13, w2)
    )
    return PackedExperts(first, second, chosen)


@functools.cache
def _works(dtype: torch.dtype) -> bool:
    """Return whether this vLLM's kernel multiplies a dtype on this CPU: it is tried, for releases differ."""
    if _functions() is None:
        return False
    ones = torch.ones(2, _ALIGNMENT, 2 * _ALIGNMENT, dtype=dtype) / _ALIGNMENT
    try:
        packed = _pack(ones, ones[..., :_ALIGNMENT])
        rows = torch.ones(1, _ALIGNMENT, dtype=dtype)
        found = packed.apply(rows, torch.full((1, 1), 2.0), torch.ones(1, 1, dtype=torch.int32))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    # Gate and up are 1: twice silu(1) · 1. The kernel's exponential is an approximation.
    near = max(8 * torch.finfo(dtype).eps, 1e-5)
    return bool(((found.double() - 2 * torch.tensor(1.0).double().sigmoid()).abs() < near).all())
