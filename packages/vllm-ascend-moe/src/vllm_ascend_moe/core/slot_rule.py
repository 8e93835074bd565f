# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How one rank chooses among the copies of an expert: see `vllm_ascend_moe.core.replicas` for the choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from expert_maps import ExpertMapsError, Placement
from vllm_ascend_moe.core.replica_weights import fit_copies, settings_weights
from vllm_ascend_moe.core.settings import ReplicaChoiceName

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm_ascend_moe.core.settings import Settings
    from vllm_ascend_moe.core.sources import PlacementSource

ReplicaChoice = ReplicaChoiceName
REPLICA_CHOICES: tuple[str, ...] = get_args(ReplicaChoiceName)
# Those by which a token's copy depends on the rank that sends it.
BY_RANK = frozenset({"static", "own_rank", "tensor_parallel", "local"})
# Of vLLM's table; a list longer than this cannot be written.
MAX_SLOTS = 1024


class ReplicaChoiceError(ExpertMapsError):
    """The choice does not exist, lacks what it needs, or would let ranks disagree."""


@dataclass(frozen=True, eq=False)
class SlotRule:
    """How one rank chooses among copies.

    Attributes:
        choice: see `vllm_ascend_moe.core.replicas`.
        turn: by how many tokens this rank is ahead of rank 0, so that ranks with one token each do not all
            choose the same copy; the same on ranks that see the same tokens.
        tp_size: tensor-parallel size, for ``tensor_parallel``.
        ranks_must_agree: whether all ranks see the same tokens.
        weights: float64 [L, E, X], for ``weighted``.
        rows: the period in tokens of ``weighted``.
        group_size: ranks that see the same tokens as this one, for ``local``; they are number ``turn`` of such groups.
        num_nodes: servers, for ``local``.
    """

    choice: ReplicaChoiceName
    turn: int = 0
    tp_size: int = 1
    ranks_must_agree: bool = False
    weights: NDArray[np.float64] | None = None
    rows: int = 128
    group_size: int = 1
    num_nodes: int = 1

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        source: PlacementSource | None = None,
        *,
        ep_size: int,
        tp_size: int,
        ep_rank: int = 0,
        splits_tokens: bool = False,
        num_nodes: int = 1,
    ) -> SlotRule:
        """Make the rule that the settings ask for.

        Args:
            settings: the plugin's.
            source: the placement that is served; needed where the settings name weights.
            ep_size: R.
            tp_size: tensor-parallel size; the ranks of such a group see the same tokens.
            ep_rank: this rank.
            splits_tokens: unless they are split among them (sequence parallelism).
            num_nodes: servers, each with as many ranks.

        Raises:
            ExpertMapsError: the file of weights is unreadable, or for another placement.
        """
        weights = settings_weights(settings, source)
        turn = ep_rank if splits_tokens else ep_rank // tp_size
        # These differ within such a group, static only between groups.
        differs_within = settings.choice in {"tensor_parallel", "own_rank"} and tp_size > 1
        groups = 1 if differs_within else ep_size // tp_size
        return cls(
            settings.choice,
            turn,
            tp_size,
            not splits_tokens and groups == 1,
            weights,
            group_size=1 if splits_tokens else tp_size,
            num_nodes=num_nodes,
        )

    def tables(
        self, placement: Placement, first_layer: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return every expert's slots.

        Args:
            placement: of some layers.
            first_layer: index of the first of them, among those that there are weights for.

        Returns:
            slots: int64 [L, E, N], physical ids, −1 past the count.
            count: int64 [L, E].

        Raises:
            ReplicaChoiceError: the choice would let ranks disagree.
            ExpertMapsError: there are no weights for these layers, or they are no shares.
        """
        check_ranks_agree(self.choice, placement, ranks_must_agree=self.ranks_must_agree)
        if placement.replica_count.max() > MAX_SLOTS:
            msg = f"an expert has {placement.replica_count.max()} copies; expected at most {MAX_SLOTS}, as vLLM's table has"
            raise ExpertMapsError(msg)
        if self.choice == "weighted":
            return self._weighted(placement, first_layer)
        copies = placement.logical_to_physical.astype(np.int64)  # [L, E, X]
        count = placement.replica_count.astype(np.int64)
        if self.choice == "local":
            copies, count = self._near(placement, copies)
        if self.choice in {"local", "rank_offset"}:
            turn = (np.arange(copies.shape[2]) + self.turn) % count[..., None]
            slots = np.take_along_axis(copies, turn, axis=2)
            return np.where(np.arange(copies.shape[2]) < count[..., None], slots, -1), count
        if self.choice == "own_rank":
            rank = self.turn % placement.ep_size
            own = placement.global_log2phy(prefer_own_rank=True)[:, rank]
            return own[..., None].astype(np.int64), np.ones_like(count)
        start = np.full(count.shape[1], self.turn)
        if self.choice == "tensor_parallel":
            start = self.turn % self.tp_size + self.turn // self.tp_size + np.arange(count.shape[1])
        slots = np.take_along_axis(copies, (start % count)[..., None], axis=2)
        return slots, np.ones_like(count)

    def _near(
        self, placement: Placement, copies: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Put the copies that are near in front, and count them: [L, E, X] and [L, E]."""
        ranks = placement.slot_rank[copies]  # of what does not exist any rank's
        ranks_per_node = placement.ep_size // self.num_nodes
        near = exists = copies >= 0
        for size in (ranks_per_node, self.group_size):
            within = exists & (ranks // size == self.turn * self.group_size // size)
            near = np.where(within.any(axis=2, keepdims=True), within, near)
        first = np.argsort(~near, axis=2, kind="stable")
        return np.take_along_axis(copies, first, axis=2), near.sum(axis=2)

    def _weighted(
        self, placement: Placement, first_layer: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self.weights is not None
        layers = placement.num_layers
        if first_layer + layers > len(self.weights):
            msg = (
                f"replica_weights has shape {list(self.weights.shape)}; expected at least "
                f"{first_layer + layers} layers, [L, E, X] as the placement"
            )
            raise ExpertMapsError(msg)
        copies = placement.logical_to_physical
        tables = [
            placement.weighted_routing_table(
                layer,
                self.turn % placement.ep_size,
                fit_copies(self.weights[first_layer + layer], copies[layer]),
                rows=self.rows,
            )
            for layer in range(layers)
        ]
        slots = np.stack(tables).transpose(0, 2, 1).astype(np.int64)  # [L, E, rows]
        count = np.where(placement.replica_count > 1, slots.shape[2], 1).astype(np.int64)
        return np.where(np.arange(slots.shape[2]) < count[..., None], slots, -1), count


def check_ranks_agree(choice: str, placement: Placement, *, ranks_must_agree: bool) -> None:
    """Refuse a choice by rank where all ranks see the same tokens, and there are copies to choose from.

    Raises:
        ReplicaChoiceError: see the class.
    """
    if ranks_must_agree and choice in BY_RANK and placement.num_redundant_experts:
        msg = (
            f"replica choice is {choice}, by which each rank chooses a copy of its own; expected rank_offset "
            "or weighted, because without all-to-all all ranks must agree"
        )
        raise ReplicaChoiceError(msg)
