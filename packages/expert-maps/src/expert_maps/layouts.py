# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Initial placements by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from expert_maps import limits
from expert_maps._rules import split_evenly
from expert_maps.counts import as_physical, check_divides
from expert_maps.errors import LayoutError
from expert_maps.placement import Placement
from expert_maps.validation import as_count, check_counts

if TYPE_CHECKING:
    from collections.abc import Callable

    RankLists = list[list[int]]

LayoutName = Literal["linear", "round_robin", "ring", "append"]
LAYOUT_NAMES: tuple[LayoutName, ...] = get_args(LayoutName)


def linear(num_experts: int, ep_size: int, num_redundant_experts: int = 0) -> RankLists:
    """Give each rank a run of consecutive experts, the first ranks one more: vLLM's ``linear``.

    Args:
        num_experts: E.
        ep_size: R.
        num_redundant_experts: only 0; this layout has no copies.

    Returns:
        One list of logical experts a rank, in slot order.
    """
    _refuse_redundancy("linear", num_redundant_experts)
    ends = np.cumsum(split_evenly(num_experts, ep_size)).tolist()
    return [list(range(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def round_robin(num_experts: int, ep_size: int, num_redundant_experts: int = 0) -> RankLists:
    """Deal experts to ranks in turn, rank r gets r, r + R, …: vLLM's ``round_robin``.

    Arguments and result as in `linear`.
    """
    _refuse_redundancy("round_robin", num_redundant_experts)
    return [list(range(rank, num_experts, ep_size)) for rank in range(ep_size)]


def ring(num_experts: int, ep_size: int, num_redundant_experts: int = 0) -> RankLists:
    """Split as `linear`, then add copies one at a time from the last rank backwards and round again.

    Each copy is of the expert after the rank's last one, modulo E. This is vllm-ascend's redundant
    layout; without redundancy it equals `linear`. A rank that the split left without an expert (more
    ranks than experts) starts at expert ``rank % E``.

    Arguments and result as in `linear`, with any ``num_redundant_experts``.
    """
    ranks = linear(num_experts, ep_size)
    for copy in range(num_redundant_experts):
        rank = ep_size - 1 - copy % ep_size
        slots = ranks[rank]
        slots.append((slots[-1] + 1 if slots else rank) % num_experts)
    return ranks


def append(num_experts: int, ep_size: int, num_redundant_experts: int = 0) -> RankLists:
    """Number all experts, then copy i is of expert ``i % E``, and cut into equal runs: vLLM's EPLB start.

    Arguments and result as in `linear`, with any ``num_redundant_experts``.
    """
    total = num_experts + num_redundant_experts
    return [[slot % num_experts for slot in run] for run in linear(total, ep_size)]


_LAYOUTS: dict[LayoutName, Callable[[int, int, int], RankLists]] = {
    "linear": linear,
    "round_robin": round_robin,
    "ring": ring,
    "append": append,
}


def generate_placement(  # noqa: PLR0913 - options by keyword
    layout: LayoutName | str = "ring",
    *,
    num_experts: int,
    ep_size: int,
    num_redundant_experts: int | None = None,
    num_physical_experts: int | None = None,
    num_layers: int = 1,
    num_shared_experts: int = 0,
    shared_on_every_rank: bool = False,
    allow_duplicates: bool = False,
) -> Placement:
    """Build an initial placement, the same in every layer.

    Args:
        layout: one of `LAYOUT_NAMES`.
        num_experts: E, the routed experts.
        ep_size: R.
        num_redundant_experts: P − E per layer over all ranks; ``linear`` and ``round_robin`` take 0 only. 0 where
            neither this nor ``num_physical_experts`` is given.
        num_physical_experts: P, which says the same; the slots of shared experts are not counted.
        num_layers: L.
        num_shared_experts: if above 0, every rank gets one more slot, the last, with the shared expert
            ``E + rank % num_shared_experts``; shared experts count as logical experts E, E + 1, …
        shared_on_every_rank: give every rank all shared experts, in as many slots after its others, instead of one of
            them in turn, which is vllm-ascend's rule for mixed placement.
        allow_duplicates: accept an expert twice on a rank.

    Returns:
        The placement.

    Raises:
        LayoutError: an unknown layout, or counts for which it does not exist.
        PlacementError: the layout puts an expert twice on a rank.
    """
    if layout not in LAYOUT_NAMES:  # of any type, which may have no hash
        msg = f"layout is {layout!r:.200}; expected one of {', '.join(LAYOUT_NAMES)}"
        raise LayoutError(msg)
    experts = as_count("num_experts", num_experts, 1, limits.MAX_EXPERTS, error=LayoutError)
    ranks = as_count("ep_size", ep_size, 1, limits.MAX_RANKS, error=LayoutError)
    physical = as_physical(experts, ranks, num_redundant_experts, num_physical_experts)
    redundant = 0 if physical is None else physical - experts
    layers = as_count("num_layers", num_layers, 1, limits.MAX_LAYERS, error=LayoutError)
    if redundant < 0:
        msg = f"num_physical_experts is {experts + redundant}; expected at least {experts}, num_experts"
        raise LayoutError(msg)
    shared = _as_shared(num_shared_experts, ranks, on_every_rank=shared_on_every_rank)
    # The layouts are loops over slots.
    check_counts(
        num_layers=layers,
        num_logical_experts=experts + shared,
        ep_size=ranks,
        num_physical_experts=experts + redundant + (ranks if shared else 0),
        error=LayoutError,
    )
    check_divides(experts, redundant, ranks)
    slots = _LAYOUTS[layout](experts, ranks, redundant)
    if shared:
        every = list(range(experts, experts + shared))
        slots = [
            [*slot, *(every if shared_on_every_rank else [every[rank % shared]])]
            for rank, slot in enumerate(slots)
        ]
    row = np.array([expert for slot in slots for expert in slot], dtype=np.int64)
    return Placement(
        np.broadcast_to(row, (layers, len(row))),
        ranks,
        num_logical_experts=experts + shared,
        slots_per_rank=np.array([len(slot) for slot in slots]),
        # A shared expert on every rank is redundancy by the numbers, yet the routed split is vLLM's.
        allow_uneven=shared > 0,
        allow_duplicates=allow_duplicates,
    )


def _as_shared(num_shared_experts: int, ep_size: int, *, on_every_rank: bool) -> int:
    """Return the shared experts of a layer; arguments and errors as of `generate_placement`."""
    shared = as_count("num_shared_experts", num_shared_experts, 0, error=LayoutError)
    if on_every_rank and not shared:
        msg = "num_shared_experts is 0 with shared_on_every_rank; expected at least 1"
        raise LayoutError(msg)
    if shared > ep_size and not on_every_rank:
        msg = f"num_shared_experts is {shared}; expected at most ep_size, {ep_size}: a rank gets one of them (all of them with shared_on_every_rank)"
        raise LayoutError(msg)
    return shared


def _refuse_redundancy(layout: LayoutName, num_redundant_experts: int) -> None:
    if num_redundant_experts:
        msg = (
            f"num_redundant_experts is {num_redundant_experts}; layout {layout!r} takes 0, "
            "use 'ring' or 'append' for copies"
        )
        raise LayoutError(msg)
