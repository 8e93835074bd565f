# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The load that the fake server records, worked out from what it answered."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
from fake_server import LAYERS, RANKS, load_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def rank_loads(answered: Iterable[str]) -> list[list[float]]:
    """Load of the ranks, [L, R], by the questions alone, each asked once.

    Args:
        answered: lines of the fake's log; texts that were scored count nothing.
    """
    return np.sum(_each(answered), axis=0).tolist()


def _each(answered: Iterable[str]) -> list[NDArray[np.float64]]:
    prompts = [json.loads(line) for line in answered if "forced" not in line]
    return [load_of(prompt).astype(float).reshape(LAYERS, RANKS, -1).sum(axis=2) for prompt in prompts]


def is_once_but_for(most: int, load: list[list[float]], answered: Iterable[str]) -> bool:
    """Say whether a load has each question once, and so many of them at most twice: a server may go on with what was lost.

    Args:
        most: questions that were in flight when a run was cut off.
        load: [L, R].
        answered: as of `rank_loads`.
    """
    each = _each(answered)
    extra = np.asarray(load) - np.sum(each, axis=0)
    return any(
        (extra == np.sum(some, axis=0)).all()
        for count in range(most + 1)
        for some in itertools.combinations(each, count)
    )
