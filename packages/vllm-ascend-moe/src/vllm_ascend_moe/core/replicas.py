# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which copy of an expert a rank sends each token to: one table a layer and rank, chosen by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from expert_maps import ExpertMapsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from expert_maps import Placement

ReplicaChoice = Literal["static", "own_rank", "tensor_parallel", "rank_offset", "weighted"]
REPLICA_CHOICES: tuple[str, ...] = get_args(ReplicaChoice)
# Those by which a token's copy depends on nothing but the rank that sends it.
BY_RANK = frozenset({"static", "own_rank", "tensor_parallel"})


class ReplicaChoiceError(ExpertMapsError):
    """The choice does not exist, lacks what it needs, or would let ranks disagree."""


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
) -> torch.Tensor:
    """Return the table that `vllm_ascend_moe.npu_ops.map_to_physical` looks replicas up in.

    | choice | an expert's token goes to | rows |
    |---|---|---|
    | ``static`` | copy ``ep_rank % n`` | 1 |
    | ``own_rank`` | this rank's copy; where it has none, the ranks without are dealt out to the copies evenly | 1 |
    | ``tensor_parallel`` | copy ``(tp_rank + ep_rank // tp_size + expert) % n`` | 1 |
    | ``rank_offset`` | its copies in turn, each rank starting one further on | the period |
    | ``weighted`` | its copies by their weights, each rank starting one further on | the period |

    Without all-to-all every rank sees all tokens, and takes those that its own slots are chosen for. Ranks
    that choose differently then leave a token to nobody, or take it twice. With ``ranks_must_agree`` the
    tables are the same on every rank (that of rank 0), and choices that depend on nothing but the rank are
    refused.

    Args:
        placement: the placement.
        layer: MoE layer index.
        ep_rank: this rank.
        choice: see the table.
        tp_size: tensor-parallel size; only for ``tensor_parallel``.
        rows: the period in tokens; None for the choice's default.
        replica_weights: float64 [E, X], this layer's; only for ``weighted``.
        ranks_must_agree: whether all ranks see the same tokens.

    Returns:
        int32 [rows, E], on the CPU.

    Raises:
        ReplicaChoiceError: see the class.
        ExpertMapsError: an index does not exist, or the weights are no shares.
    """
    if choice not in REPLICA_CHOICES:
        msg = f"replica choice is {choice!r}; expected one of {', '.join(REPLICA_CHOICES)}"
        raise ReplicaChoiceError(msg)
    if (choice == "weighted") != (replica_weights is not None):
        found = "missing" if replica_weights is None else "given"
        msg = f"replica_weights are {found}; expected them with the choice weighted only, and it is {choice}"
        raise ReplicaChoiceError(msg)
    check_ranks_agree(choice, placement, ranks_must_agree=ranks_must_agree)
    if ranks_must_agree:
        ep_rank = 0
    if choice in BY_RANK:
        size = tp_size if choice == "tensor_parallel" else 1
        table = placement.log2phy(layer, ep_rank, tp_size=size, prefer_own_rank=choice == "own_rank")[None]
    elif replica_weights is None:
        table = placement.routing_table(layer, ep_rank, rows=rows)
    elif rows is None:
        table = placement.weighted_routing_table(layer, ep_rank, replica_weights)
    else:
        table = placement.weighted_routing_table(layer, ep_rank, replica_weights, rows=rows)
    # Copied, because NumPy's may be read-only, which torch warns about.
    return torch.from_numpy(table.copy())


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
