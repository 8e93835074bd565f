# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the settings come to for one model in vLLM's EPLB state: which copies tokens take, and which layers are moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.core.checksums import each_tensor
from vllm_ascend_moe.core.gain import MoveRule, tokens_per_slot
from vllm_ascend_moe.core.replicas import SlotRule

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from vllm_ascend_moe.core.session import Session
    from vllm_ascend_moe.core.settings import Settings


def slot_rule(session: Session, *, splits_tokens: bool, is_main: bool) -> SlotRule:
    """Return by what this rank chooses among copies.

    Args:
        session: the engine's.
        splits_tokens: whether the ranks of a tensor-parallel group see different tokens of this model.
        is_main: not a draft model.

    Raises:
        ExpertMapsError: the weights that the settings name are none.
    """
    ranks = session.ranks
    rule = SlotRule.from_settings(
        session.settings,
        session.source,
        ep_size=ranks.ep_size,
        tp_size=ranks.tp_size,
        ep_rank=ranks.ep_rank,
        splits_tokens=splits_tokens,
        num_nodes=ranks.num_nodes,
    )
    # For a draft model there are no weights.
    return rule if is_main or rule.choice != "weighted" else SlotRule("rank_offset", rule.turn)


def move_rule(session: Session, model: Any) -> MoveRule:
    """Return by what layers of a rearrangement are chosen.

    Args:
        session: the engine's.
        model: vLLM's MixtureOfExperts.
    """
    eplb = session.config.parallel_config.eplb_config
    return rule_for(
        session.settings,
        session.config.device_config.device_type,
        each_tensor(model.expert_weights[0]),  # of each kind one [slots, …], or one a slot
        model.num_local_physical_experts,
        eplb.step_interval / min(eplb.step_interval, eplb.window_size),
    )


def rule_for(
    settings: Settings, device_type: str, weights: Iterable[torch.Tensor], slots: int, windows: float
) -> MoveRule:
    """Return the rule for slots of a size.

    Args:
        settings: the plugin's.
        device_type: as torch names it.
        weights: of some slots of one layer, scales included.
        slots: of how many.
        windows: see `MoveRule`.
    """
    weights = list(weights)
    slot_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights) / slots
    parameters = sum(tensor.numel() for tensor in weights) / slots
    return MoveRule(
        settings.min_gain,
        settings.max_layers,
        tokens_per_slot(device_type, slot_bytes, parameters),
        windows,
        slot_bytes,
    )


__all__ = ["move_rule", "rule_for", "slot_rule"]
