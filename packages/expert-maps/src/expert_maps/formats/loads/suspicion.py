# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays of three axes that look like something else than [steps, L, E]: refused, because they would be read wrongly.

In a load every MoE layer of a step has as many tokens as the others, because each token visits each layer with the same
top-k. Where that does not hold, the axes mean something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from expert_maps import limits
from expert_maps.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

Number = TypeVar("Number", bound=np.generic)

# Totals of MoE layers of one trace are equal, or nearly so (0.05 % in measured dumps).
EQUAL_WITHIN = 0.01
_SAME_WITHIN = 0.001
_LEAST_TOP_K, _MOST_TOP_K = 2, 32
_FEWEST_ROWS = 8
_PIECE = 2**20  # numbers looked at together
_AS_STEPS = "give --steps all if its first axis is steps"


def refuse(values: Float64Array) -> None:
    """Refuse an array whose content says that it is no [steps, L, E].

    Args:
        values: float64 [steps, rows, columns]; what comes after the most steps that a load may have is not looked at.

    Raises:
        LoadError: it looks like a placement, counts by rank and slot, or routed experts.
    """
    if values.shape[0] < 2:  # noqa: PLR2004 - one step is no third axis
        return
    shape = list(values.shape)
    values = values[: limits.MAX_STEPS]
    if is_placement(values):
        msg = (
            f"shape {shape} of 0 and 1, where each expert is on a rank in each layer: a placement of omni-infer "
            f"[ranks, layers, experts], not a load; read it as a map (expert-maps convert --from omni), or {_AS_STEPS}"
        )
        raise LoadError(msg)
    if is_by_rank(values):
        msg = (
            f"shape {shape} looks like counts by slot [layers, ranks, slots], as vllm-ascend's moe_load has them: the "
            f"totals of the first axis are equal, those of the second are not; give --format vllm-ascend and --map "
            f"MAP, or {_AS_STEPS}"
        )
        raise LoadError(msg)
    if is_expert_ids(values):
        msg = (
            f"shape {shape} looks like expert ids [tokens, layers, top_k] of a trace of routed experts, not counts; "
            f"give --format routed-experts with --experts or --model, or {_AS_STEPS}"
        )
        raise LoadError(msg)


def differ(totals: Float64Array) -> bool:
    """Say whether some totals differ by more than layers of one trace do."""
    return bool(_rows_differ(totals[None])[0])


def _rows_differ(totals: Float64Array) -> NDArray[np.bool_]:
    """Say of each row what `differ` says, bool [rows]; of none that there is nothing in it."""
    peak = totals.max(axis=1, initial=0)
    least: Float64Array = totals.min(axis=1, initial=np.inf)
    return (peak > 0) & (peak - least > EQUAL_WITHIN * peak)


def is_placement(values: Float64Array) -> bool:
    """Say whether 0 and 1 mark, in every layer, at least one rank for each expert and not many more.

    A trace of single tokens marks experts too, but reaches all of them only when most are marked many times; in a single
    layer that may still happen.
    """
    if not np.isin(values, (0, 1)).all() or (values == 1).all() or values.shape[1] == 1:
        return False
    copies = values.sum(axis=0)
    return bool((copies >= 1).all() and copies.mean() <= 2)  # noqa: PLR2004 - as many redundant as there are experts


def is_by_rank(values: Float64Array) -> bool:
    """Say whether the first axis has equal totals, and the second has not."""
    totals = values.sum(axis=2)
    outer = totals.sum(axis=1)
    is_equal = outer.min() > 0 and outer.max() - outer.min() <= _SAME_WITHIN * outer.max()
    # Dense layers have no tokens, which makes layers of a step unequal too.
    return bool(is_equal and _rows_differ(np.where(totals > 0, totals, totals.max(axis=1)[:, None])).all())


def is_expert_ids(values: Float64Array) -> bool:
    """Say whether every row holds different small integers that come again and again in other rows."""
    top_k = values.shape[2]
    if not _LEAST_TOP_K <= top_k <= _MOST_TOP_K or values.shape[0] * values.shape[1] < _FEWEST_ROWS:
        return False
    busy = (values != 0).any(axis=(0, 2))  # layers that are dense have id 0 in each place
    if not busy.any() or values.size < 4 * (values.max() + 1):
        return False
    if not all(_are_ids(part[:, busy]) for part in pieces(values)):
        return False
    # Of a load, layers of one step have equal totals; of ids, hardly ever.
    unequal = _rows_differ(values.sum(axis=2)[:, busy])
    return bool(np.count_nonzero(unequal) > len(unequal) / 2)


def _are_ids(values: Float64Array) -> bool:
    """Say whether all are whole numbers, and those of a row differ."""
    ordered = np.sort(values, axis=2)
    return bool((ordered % 1 == 0).all() and (ordered[..., 1:] != ordered[..., :-1]).all())


def pieces(values: NDArray[Number]) -> Iterator[NDArray[Number]]:
    """Go over an array of three axes in pieces along the first, so that what is made of each stays small."""
    rows = max(1, _PIECE // max(1, values[0].size))
    return (values[start : start + rows] for start in range(0, len(values), rows))
