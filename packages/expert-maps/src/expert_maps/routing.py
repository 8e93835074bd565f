# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Routing tables: which replica of an expert each token takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

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
