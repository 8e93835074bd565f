# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where the experts of every model in vLLM's EPLB state belong, while new weights are loaded in vLLM's own layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.backends import moving

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from expert_maps import Placement
    from vllm_ascend_moe.backends.ranks import Ranks

    WriteSlots = Callable[[Any], None]


class Homes:
    """The models of one engine; it owns what vLLM's loader fills, and where experts are to come back to."""

    def __init__(self) -> None:
        """Know no model yet."""
        # Of every model, in vLLM's order: its state, and the placement that its loader fills, int64 [L, P].
        self._loaded: list[tuple[Any, torch.Tensor]] = []
        # While vLLM's own layout serves, because weights are loaded or have failed to: where each model's experts belong.
        self._away: list[Placement] = []

    @property
    def are_left(self) -> bool:
        """Whether vLLM's own layout serves."""
        return bool(self._away)

    def add(self, model_state: Any) -> None:
        """Take a model whose experts are where vLLM's loader puts them."""
        self._loaded.append((model_state, model_state.physical_to_logical_map.clone()))

    def leave(self, ranks: Ranks, write_slots: WriteSlots) -> None:
        """Move every model's experts to where vLLM's loader puts them."""
        # After a failure they are there already, and belong where they were before that.
        self._away = self._away or [moving.live_placement(state, ranks.ep_size) for state, _ in self._loaded]
        for model_state, rows in self._loaded:
            # What is there may be no weights any more, after a sleep.
            target = moving.placement_of(rows, model_state, ranks.ep_size)
            _move(target, model_state, ranks, write_slots, checks=False)

    def come_back(self, ranks: Ranks, write_slots: WriteSlots, *, checks: bool) -> None:
        """Move every model's experts to where they were, and fill every copy; with checks, bytes are compared."""
        for target, (model_state, _) in zip(self._away, self._loaded, strict=False):
            _move(target, model_state, ranks, write_slots, checks=checks)
        self._away = []


def _move(
    target: Placement, model_state: Any, ranks: Ranks, write_slots: WriteSlots, *, checks: bool
) -> None:
    moving.move_experts(target, "the placement", model_state.model, model_state, ranks, checks=checks)
    write_slots(model_state)
    # Counted by slot, of which each held another expert.
    model_state.expert_load_window.zero_()
    model_state.expert_load_pass.zero_()
