# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How vLLM's own CPU experts serve a rank that holds some of them; `vllm_cpu` chooses which experts do. Loads vLLM.

They know of no other ranks: an id that is not theirs would be read past their weights. So each token's experts that are
here are handed to them as a row of one expert each. Their weights are packed expert by expert, so that a slot's packed
bytes move as others do.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.npu_ops.packed import add_local

if TYPE_CHECKING:
    import torch


class LocalRows:
    """What is put before one of vLLM's classes of experts, see `local_rows`."""

    serves_ranks = True

    def supports_expert_map(self) -> bool:
        """Ids of other ranks' experts are left out here."""
        return True

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: Any,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Write this rank's contribution to ``output`` [T, H].

        Args:
            output: [T, H], written.
            hidden_states: [T, H].
            w1: packed, a row a slot.
            w2: as w1.
            topk_weights: float32 [T, K].
            topk_ids: [T, K]; without EPLB logical ids, with EPLB physical ones.
            activation: vLLM's, as what follows.
            global_num_experts: passed on.
            expert_map: id → local slot, −1 on another rank; None where all are here.
            args: passed on.
            kwargs: passed on.
        """
        kept: Any = super()
        if expert_map is None:
            given = hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, None
            kept.apply(output, *given, *args, **kwargs)
            return
        local = expert_map[topk_ids.long()]

        def run(rows: torch.Tensor, states: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> None:
            given = states, w1, w2, weights, ids.to(topk_ids.dtype), activation, global_num_experts, None
            kept.apply(rows, *given, *args, **kwargs)

        add_local(run, output, hidden_states, topk_weights, local, local >= 0)


@functools.cache
def local_rows(experts: type) -> type:
    """Return a class of vLLM's experts that serves the ids of this rank's experts and leaves out the others."""
    return type(f"Local{experts.__name__}", (LocalRows, experts), {})


def pack_reloaded(layer: Any) -> None:
    """Pack a layer's weights whenever they are loaded anew, too: vLLM packs them for the first time only."""
    method = layer.quant_method
    experts = getattr(getattr(method, "moe_kernel", None), "fused_experts", None)
    if not isinstance(experts, LocalRows):
        return
    original = method.process_weights_after_loading

    def process_and_pack(processed: Any) -> None:
        original(processed)
        method.moe_kernel.fused_experts.process_weights_after_loading(processed)

    method.process_weights_after_loading = process_and_pack


__all__ = ["LocalRows", "local_rows", "pack_reloaded"]
