# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What policies and redundancies come to side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_maps.errors import LayoutError, PlacementError
from expert_maps.evaluate import evaluate
from expert_maps.layouts import LAYOUT_NAMES, generate_placement
from expert_maps.load import as_load
from expert_maps.planning import plan
from expert_maps.policies import POLICY_NAMES
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike

    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement


@dataclass(frozen=True)
class ComparisonRow:
    """One line of `compare`. Where nothing could be planned, ``reason`` says why, and the numbers are None.

    Attributes:
        policy: one of `POLICY_NAMES` or `LAYOUT_NAMES`.
        num_redundant_experts: per layer, over all ranks.
        num_physical_experts: slots of a layer.
        slots_per_rank: the most of a rank.
        overall_balancedness: in total, the ratio of sums over layers.
        worst_balancedness: of the worst layer.
        worst_layer: which that is.
        over_steps: the ratio of sums over steps and layers; equal to the total for a load of one step.
        seconds: that planning took.
        reason: why there is no plan; None where there is one.
    """

    policy: str
    num_redundant_experts: int
    num_physical_experts: int
    slots_per_rank: int | None = None
    overall_balancedness: float | None = None
    worst_balancedness: float | None = None
    worst_layer: int | None = None
    over_steps: float | None = None
    seconds: float | None = field(default=None, compare=False)
    reason: str | None = None


def compare(  # noqa: PLR0913 - options by keyword
    load: ArrayLike | ExpertLoad,
    *,
    ep_size: int,
    policies: Iterable[str] = POLICY_NAMES,
    redundant: Iterable[int] | None = None,
    num_redundant_experts: Iterable[int] | None = None,
    num_groups: int = 1,
    num_nodes: int = 1,
    tolerance: float | None = None,
    allow_uneven: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> list[ComparisonRow]:
    """Plan a load by several policies with several redundancies.

    Args:
        load: as for `plan`.
        ep_size: R.
        policies: of `POLICY_NAMES`, and `LAYOUT_NAMES` for what is served without a plan.
        redundant: redundant experts of a layer, over all ranks, several; (0, 32, 64) if neither name is given.
        num_redundant_experts: the same by its long name.
        num_groups: as for `plan`.
        num_nodes: as for `plan`.
        tolerance: as for `plan`, for ``balanced``.
        allow_uneven: as for `plan`.
        progress: called with (rows done, rows).

    Returns:
        A row for each redundancy and policy, in this order; also where a policy has no plan for these counts.

    Raises:
        LoadError: the load is invalid.
        LayoutError: a policy is unknown, a redundancy no count, or ``ep_size`` is.
        ExpertMapsError: the compiled planner is missing.
    """
    trace = as_load(load)
    counts = _as_amounts(redundant, num_redundant_experts)
    names = [_as_name(name) for name in policies]
    as_count("ep_size", ep_size, 1, error=LayoutError)
    cases = [(count, name) for count in counts for name in names]
    rows = []
    for count, name in cases:

        def make(count: int = count, name: str = name) -> Placement:
            if name in LAYOUT_NAMES:
                return generate_placement(
                    name,
                    num_experts=trace.num_experts,
                    ep_size=ep_size,
                    num_redundant_experts=count,
                    num_layers=trace.num_layers,
                )
            return plan(
                trace,
                ep_size=ep_size,
                num_redundant_experts=count,
                policy=name,
                num_groups=num_groups,
                num_nodes=num_nodes,
                tolerance=tolerance if name == "balanced" else None,
                allow_uneven=allow_uneven,
            ).placement

        rows.append(_row(name, count, trace, make))
        if progress is not None:
            progress(len(rows), len(cases))
    return rows


def _as_amounts(redundant: Iterable[int] | None, num_redundant_experts: Iterable[int] | None) -> list[int]:
    """Return the redundancies, by whichever name they were given."""
    if redundant is not None and num_redundant_experts is not None:
        msg = "redundant and num_redundant_experts are both given; expected one of them: they say the same"
        raise LayoutError(msg)
    amounts = redundant if redundant is not None else num_redundant_experts
    return [
        as_count("num_redundant_experts", count, 0, error=LayoutError)
        for count in (amounts if amounts is not None else (0, 32, 64))
    ]


def _as_name(name: str) -> str:
    known = (*POLICY_NAMES, *LAYOUT_NAMES)
    if name not in known:
        msg = f"policy is {name!r}; expected one of {', '.join(known)}"
        raise LayoutError(msg)
    return name


def _row(name: str, redundant: int, trace: ExpertLoad, make: Callable[[], Placement]) -> ComparisonRow:
    slots = trace.num_experts + redundant
    started = time.perf_counter()
    try:
        placement = make()
    except (LayoutError, PlacementError) as error:
        reason = error.summary if isinstance(error, PlacementError) else str(error)
        return ComparisonRow(name, redundant, slots, reason=" ".join(reason.split()))
    seconds = time.perf_counter() - started
    found = evaluate(placement, trace)
    worst = int(found.worst_layers[0])
    return ComparisonRow(
        name,
        redundant,
        slots,
        int(placement.slots_per_rank.max()),
        found.overall_balancedness,
        float(found.balancedness[worst]),
        worst,
        found.over_steps,
        seconds,
    )
