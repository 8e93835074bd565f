# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which copy of an expert each token takes: for each expert a list of slots that its tokens take in turn.

| choice | an expert's tokens go to |
|---|---|
| ``static`` | copy ``ep_rank % n`` |
| ``own_rank`` | this rank's copy; where it has none, the ranks without are dealt out to the copies evenly |
| ``tensor_parallel`` | copy ``(tp_rank + ep_rank // tp_size + expert) % n`` |
| ``local`` | the copies on this rank; where there are none those on its node, else all of them; in turn |
| ``rank_offset`` | its copies in turn, each rank starting one further on |
| ``weighted`` | its copies by their weights, each rank starting one further on |

vLLM's EPLB state holds such lists, up to 1024 physical ids and how many of them count; token t takes number
``t % count``. So a copy's share is how often it stands in the list, and the kernels that read it need not change.
vllm-ascend and `npu_ops` hold them written out, a row a token.

Without all-to-all every rank sees all tokens, and takes those that its own slots are chosen for. Ranks that choose
differently then leave a token to nobody, or take it twice: there, choices that depend on the rank are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from expert_maps import ExpertMapsError, Placement
from expert_maps.routing import default_rows
from vllm_ascend_moe.core.replica_weights import read_replica_weights, settings_weights
from vllm_ascend_moe.core.slot_rule import (
    BY_RANK,
    MAX_SLOTS,
    REPLICA_CHOICES,
    ReplicaChoice,
    ReplicaChoiceError,
    SlotRule,
    check_ranks_agree,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def build_routing_table(
    placement: Placement,
    layer: int,
    ep_rank: int,
    choice: ReplicaChoice = "static",
    *,
    tp_size: int = 1,
    rows: int | None = None,
    replica_weights: NDArray[np.float64] | None = None,
    ranks_must_agree: bool = False,
    num_nodes: int = 1,
) -> torch.Tensor:
    """Return the table that `vllm_ascend_moe.npu_ops.map_to_physical` looks replicas up in: the lists written out.

    Args:
        placement: the placement.
        layer: MoE layer index.
        ep_rank: this rank.
        choice: see the module.
        tp_size: tensor-parallel size; only for ``tensor_parallel``.
        rows: the period in tokens; None for the choice's default.
        replica_weights: float64 [E, X], this layer's; only for ``weighted``.
        ranks_must_agree: whether all ranks see the same tokens; the tables are then that of rank 0.
        num_nodes: servers, each with as many ranks; only for ``local``.

    Returns:
        int32 [rows, E], on the CPU; one row where an expert has one slot to go to.

    Raises:
        ReplicaChoiceError: see the class.
        ExpertMapsError: an index does not exist, or the weights are no shares.
    """
    _check(placement, layer, ep_rank, choice, rows, has_weights=replica_weights is not None)
    one_layer = Placement(
        placement.physical_to_logical[layer : layer + 1],
        placement.ep_size,
        num_logical_experts=placement.num_logical_experts,
        slots_per_rank=placement.slots_per_rank,
        allow_duplicates=True,
    )
    rule = SlotRule(
        choice,
        0 if ranks_must_agree else ep_rank,
        tp_size,
        ranks_must_agree,
        None if replica_weights is None else np.asarray(replica_weights)[None],
        rows or SlotRule.rows,
        num_nodes=num_nodes,
    )
    slots, count = (array[0] for array in rule.tables(one_layer))
    if choice in BY_RANK - {"local"}:
        rows = 1
    elif rows is None:
        rows = rule.rows if choice == "weighted" else default_rows(count.astype(np.int32))
    return torch.from_numpy(written_out(slots, count, rows))


def _check(
    placement: Placement, layer: int, ep_rank: int, choice: str, rows: int | None, *, has_weights: bool
) -> None:
    """Refuse arguments of `build_routing_table` that contradict the placement or each other; raises as it does."""
    if choice not in REPLICA_CHOICES:
        msg = f"replica choice is {choice!r}; expected one of {', '.join(REPLICA_CHOICES)}"
        raise ReplicaChoiceError(msg)
    if (choice == "weighted") != has_weights:
        found = "given" if has_weights else "missing"
        msg = f"replica_weights are {found}; expected them with the choice weighted only, and it is {choice}"
        raise ReplicaChoiceError(msg)
    for quantity, value, below in (
        ("layer", layer, placement.num_layers),
        ("ep_rank", ep_rank, placement.ep_size),
    ):
        if not 0 <= value < below:
            msg = f"{quantity} is {value}; expected 0 … {below - 1}"
            raise ExpertMapsError(msg)
    if rows is not None and rows < 1:
        msg = f"rows is {rows}; expected at least 1"
        raise ExpertMapsError(msg)


def written_out(slots: NDArray[np.int64], count: NDArray[np.int64], rows: int) -> NDArray[np.int32]:
    """Write the lists of one layer out, a row a token.

    Args:
        slots: [E, N], each expert's slots.
        count: [E], how many of them count.
        rows: the period in tokens.

    Returns:
        int32 [rows, E], physical ids.
    """
    table = slots[np.arange(len(count)), np.arange(rows)[:, None] % count]
    return np.asarray(table.astype(np.int32))


__all__ = [
    "BY_RANK",
    "MAX_SLOTS",
    "REPLICA_CHOICES",
    "ReplicaChoice",
    "ReplicaChoiceError",
    "SlotRule",
    "build_routing_table",
    "check_ranks_agree",
    "read_replica_weights",
    "settings_weights",
    "written_out",
]
