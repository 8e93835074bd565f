# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Routing tables: which replica of an expert each token takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The least common multiple of the replica counts balances every expert exactly, but grows fast:
# past this many rows a replica's share is off by at most one token a period, which is noise there.
MAX_DEFAULT_ROWS = 1024


def default_rows(replica_count: NDArray[np.int32]) -> int:
    """Return the period after which all replicas of all experts have had equal shares, capped."""
    return min(math.lcm(*(int(count) for count in np.unique(replica_count))), MAX_DEFAULT_ROWS)


def rank_offset_table(
    logical_to_physical: NDArray[np.int32],
    replica_count: NDArray[np.int32],
    ep_rank: int,
    rows: int,
) -> NDArray[np.int32]:
    """Build the table in which replicas take turns, each rank starting at a replica of its own.

    Row ``i`` sends to replica ``(i + ep_rank) % n``. Over one period the shares of an expert's replicas
    differ by at most one token, and so they do with a single token on each of many ranks.

    Args:
        logical_to_physical: int32 [E, X], one layer's slots, padded with −1.
        replica_count: int32 [E], n.
        ep_rank: the sending rank, the offset.
        rows: the table's period in tokens.

    Returns:
        int32 [rows, E]: row = token index mod rows, column = logical id, value = physical id.
    """
    turn = np.arange(rows, dtype=np.int32)[:, None] + np.int32(ep_rank)  # [rows, 1]
    return logical_to_physical[np.arange(len(replica_count)), turn % replica_count]


def weighted_table(
    logical_to_physical: NDArray[np.int32],
    replica_weights: NDArray[np.float64],
    ep_rank: int,
    rows: int,
) -> NDArray[np.int32]:
    """Build the table in which each replica takes its weight's share of the tokens.

    Over the first n rows, for every n up to the whole period, a replica takes less than one token more or
    less than n times its weight. Each rank starts one row further on than the one before: so the same holds
    over the ranks where each of them has a single token.

    Args:
        logical_to_physical: int32 [E, X], one layer's slots, padded with −1.
        replica_weights: float64 [E, X], each replica's share of its expert's tokens: rows sum to 1, and
            are 0 where there is no replica.
        ep_rank: the sending rank, the offset.
        rows: the table's period in tokens.

    Returns:
        int32 [rows, E]: row = token index mod rows, column = logical id, value = physical id.

    Raises:
        ExpertMapsError: the weights have another shape, are negative, do not sum to 1, or give a share to a
            replica that does not exist.
    """
    weights = _as_weights(replica_weights, logical_to_physical)
    replica = _spread(weights, rows)  # [rows, E]
    turn = (np.arange(rows) + ep_rank) % rows
    return logical_to_physical[np.arange(len(weights)), replica[turn]]


def _as_weights(
    replica_weights: NDArray[np.float64], logical_to_physical: NDArray[np.int32]
) -> NDArray[np.float64]:
    weights = np.asarray(replica_weights, dtype=np.float64)
    if weights.shape != logical_to_physical.shape:
        msg = (
            f"replica_weights has shape {list(weights.shape)}; expected {list(logical_to_physical.shape)}, "
            "as logical_to_physical"
        )
        raise ExpertMapsError(msg)
    bad = ~(weights >= 0) | ((logical_to_physical < 0) & (weights != 0))
    if bad.any():
        expert, index = np.argwhere(bad)[0]
        exists = logical_to_physical[expert, index] >= 0
        expected = "at least 0" if exists else "0, because there is no such replica"
        msg = f"replica_weights of expert {expert}, replica {index} is {weights[expert, index]}; expected {expected}"
        raise ExpertMapsError(msg)
    total = weights.sum(axis=1)
    wrong = np.nonzero(~(np.abs(total - 1) <= 1e-6))[0]  # noqa: PLR2004 - far below one token of any period
    if wrong.size:
        msg = f"replica_weights of expert {wrong[0]} sum to {total[wrong[0]]}; expected 1"
        raise ExpertMapsError(msg)
    return weights / total[:, None]


def _spread(weights: NDArray[np.float64], rows: int) -> NDArray[np.int64]:
    """Order each expert's tokens so that every prefix is fair: the replica of each row, int64 [rows, E].

    Token c of a replica with weight w may stand from row floor(c / w) on and must stand before row
    ceil((c + 1) / w). Serving the earliest deadline first meets all of them (Tijdeman, "The chairman
    assignment problem", 1980), and then no prefix, the period included, is off by a whole token.
    """
    replica = np.broadcast_to(weights.argmax(axis=1), (rows, len(weights))).copy()
    several = np.nonzero((weights > 0).sum(axis=1) > 1)[0]
    share = weights[several]
    interval = 1 / np.maximum(share, 1e-12)  # rows a token
    given = np.zeros(share.shape, dtype=np.int64)
    experts = np.arange(len(several))
    for row in range(rows):
        # A hair's breadth, because c / w may be an integer that rounding just misses.
        is_open = (share > 0) & (given * interval <= row + 1 - 1e-9)
        deadline = np.where(is_open, np.ceil((given + 1) * interval - 1e-9), np.inf)
        chosen = deadline.argmin(axis=1)
        given[experts, chosen] += 1
        replica[row, several] = chosen
    return replica
