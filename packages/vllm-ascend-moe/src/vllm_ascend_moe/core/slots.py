# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The replica choice as vLLM's own tables: for each expert a list of slots that its tokens take in turn.

vLLM's EPLB state holds, for each logical expert, up to 1024 physical ids and how many of them count; token t
takes number ``f(t) % count``. So a copy's share is how often it stands in the list, and the kernels that read
it need not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import ExpertMapsError, Placement
from expert_maps.formats.files import describe
from expert_maps.formats.loads import read_array
from vllm_ascend_moe.core.replicas import ReplicaChoiceError, check_ranks_agree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm_ascend_moe.core.settings import ReplicaChoiceName, Settings

# Of vLLM's table; a list longer than this cannot be written.
MAX_SLOTS = 1024


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
    """

    choice: ReplicaChoiceName
    turn: int = 0
    tp_size: int = 1
    ranks_must_agree: bool = False
    weights: NDArray[np.float64] | None = None

    @classmethod
    def from_settings(
        cls, settings: Settings, *, ep_size: int, tp_size: int, ep_rank: int = 0, splits_tokens: bool = False
    ) -> SlotRule:
        """Make the rule that the settings ask for.

        Args:
            settings: the plugin's.
            ep_size: R.
            tp_size: tensor-parallel size; the ranks of such a group see the same tokens.
            ep_rank: this rank.
            splits_tokens: unless they are split among them (sequence parallelism).

        Raises:
            ExpertMapsError: the file of weights is unreadable or of another shape.
        """
        weights = settings_weights(settings)
        turn = ep_rank if splits_tokens else ep_rank // tp_size
        # These differ within such a group, static only between groups.
        differs_within = settings.choice in {"tensor_parallel", "own_rank"} and tp_size > 1
        groups = 1 if differs_within else ep_size // tp_size
        return cls(settings.choice, turn, tp_size, not splits_tokens and groups == 1, weights)

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
        if self.choice == "rank_offset":
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
                layer, self.turn % placement.ep_size, _fit(self.weights[first_layer + layer], copies[layer])
            )
            for layer in range(layers)
        ]
        slots = np.stack(tables).transpose(0, 2, 1).astype(np.int64)  # [L, E, rows]
        count = np.where(placement.replica_count > 1, slots.shape[2], 1).astype(np.int64)
        return np.where(np.arange(slots.shape[2]) < count[..., None], slots, -1), count


def _fit(weights: NDArray[np.float64], copies: NDArray[np.int32]) -> NDArray[np.float64]:
    """Cut or pad a layer's last axis: the most copies of a layer are fewer than those of all layers."""
    width = copies.shape[1]
    if weights.shape[1] > width and not weights[:, width:].any():
        return weights[:, :width]
    missing = width - weights.shape[1]
    return np.pad(weights, ((0, 0), (0, missing))) if missing > 0 else weights


def settings_weights(settings: Settings) -> NDArray[np.float64] | None:
    """Return the weights that the settings name, or None.

    Raises:
        ExpertMapsError: see `read_replica_weights`.
    """
    path = settings.replica_weights_path
    return None if path is None else read_replica_weights(path)


def read_replica_weights(path: str) -> NDArray[np.float64]:
    """Read each copy's share of its expert's tokens, float64 [L, E, X].

    Raises:
        ExpertMapsError: not a ``.npy`` file of that many axes.
    """
    array = read_array(path)
    if array.ndim != 3 or array.dtype.kind not in "iuf":  # noqa: PLR2004 - [L, E, X]
        msg = f"{describe(path)} holds {array.dtype} {list(array.shape)}; expected replica weights, numbers [L, E, X]"
        raise ExpertMapsError(msg)
    return array.astype(np.float64)


__all__ = ["MAX_SLOTS", "ReplicaChoiceError", "SlotRule", "read_replica_weights"]
