# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From a plan by tokens to one by activated slots: ``plan(…, objective="activated", batch=Batch(…))``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from expert_maps.activation import Activation, activated, check_batch, copy_chances
from expert_maps.errors import LayoutError
from expert_maps.load import ExpertLoad
from expert_maps.placement import Placement
from expert_maps.policies.activated import most_copies, plan_layer
from expert_maps.policies.balanced import DEFAULT_TOLERANCE, balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from expert_maps.activation import Batch
    from expert_maps.policies.base import Cluster
    from expert_maps.results import PlanResult

    Float64Array = NDArray[np.float64]
    Rows = tuple[NDArray[np.int64], Float64Array]

Objective = Literal["tokens", "activated"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Asked:
    """What the busiest rank is to have least of.

    Attributes:
        objective: its name.
        batch: what a batch of decode is, for ``activated``.
    """

    objective: Objective | str = "tokens"
    batch: Batch | None = None

    def check(self, load: ExpertLoad, cluster: Cluster, policy: str, given: Mapping[str, object]) -> None:
        """Refuse what cannot be planned for.

        Args:
            load: what is planned for.
            cluster: with counts that have been checked.
            policy: the policy's name.
            given: options that only a plan by tokens has; None where they were not given.

        Raises:
            LayoutError: an unknown objective, one without what it needs, or options that it does not have.
            LoadError: the load is none of such batches.
        """
        if self.objective not in OBJECTIVES:
            msg = f"objective is {self.objective!r}; expected one of {', '.join(OBJECTIVES)}"
            raise LayoutError(msg)
        if (self.batch is not None) != (self.objective == "activated"):
            found = "a batch" if self.batch is not None else "no batch"
            msg = f"objective is {self.objective!r} with {found}; expected a batch with 'activated', and only there"
            raise LayoutError(msg)
        if self.batch is None:
            return
        options = {"policy": None if policy == "balanced" else policy, **given}
        options["num_nodes"] = cluster.num_nodes if cluster.is_hierarchical else None
        if cluster.num_physical_experts % cluster.ep_size:
            options["num_physical_experts"] = cluster.num_physical_experts
        for name, value in options.items():
            if value is not None:
                found = "given" if isinstance(value, Placement) else repr(value)
                msg = (
                    f"{name} is {found}; expected objective 'tokens' with it: a plan by activated slots is by the policy "
                    "'balanced', from scratch, without groups on nodes and with as many slots on each rank"
                )
                raise LayoutError(msg)
        check_batch(load, self.batch)


def plan_by_activation(
    by_tokens: PlanResult,
    batch: Batch,
    cluster: Cluster,
    tolerance: float | None,
    progress: Callable[[int, int], object] | None,
) -> PlanResult:
    """Plan for the fewest activated slots on the busiest rank, a layer at a time.

    Args:
        by_tokens: the plan by tokens: of each layer it stays where nothing better is found.
        batch: what a batch is, as `Asked.check` accepts it.
        cluster: what is planned for.
        tolerance: as for `plan`.
        progress: as for `plan`.
    """
    gap = DEFAULT_TOLERANCE if tolerance is None else tolerance
    were = activated(by_tokens, by_tokens.load, batch)
    rows, bound = _PLANS[batch.copies](by_tokens, batch, cluster, gap, progress)
    placement = _placed(rows, by_tokens.placement)
    worse = activated(placement, by_tokens.load, batch).max(axis=1) >= were.max(axis=1)
    if worse.any():
        rows[worse] = by_tokens.placement.physical_to_logical[worse]
        placement = _placed(rows, by_tokens.placement)
    of_rank = activated(placement, by_tokens.load, batch)
    bound = _checked(bound, of_rank.max(axis=1))
    return replace(
        by_tokens, placement=placement, activation=Activation(batch, of_rank, bound, were.max(axis=1))
    )


def _checked(bound: Float64Array, busiest: Float64Array) -> Float64Array:
    """Return a bound, which is above its plan by rounding at most: both are sums of the same numbers in another order.

    Raises:
        AssertionError: it is above it by more, so that the bound or the plan is wrong.
    """
    wrong = np.nonzero(bound > busiest * (1 + _ROUNDING))[0]
    if wrong.size:
        layer = int(wrong[0])
        msg = (
            f"the lower bound of layer {layer} is {bound[layer]:.17g} activated slots and its plan's busiest rank has "
            f"{busiest[layer]:.17g}; expected a bound that is no higher: one of both is wrong, please report this load"
        )
        raise AssertionError(msg)
    return np.minimum(bound, busiest)


def _placed(rows: NDArray[np.int64], like: Placement) -> Placement:
    return Placement(rows, like.ep_size, num_logical_experts=like.num_logical_experts)


def _plan_split(
    by_tokens: PlanResult,
    batch: Batch,
    cluster: Cluster,
    tolerance: float,
    progress: Callable[[int, int], object] | None,
) -> Rows:
    """Plan where an expert's tokens are split over its copies."""
    load, ranks, slots = by_tokens.load, cluster.ep_size, cluster.num_physical_experts
    copies = np.arange(1, most_copies(load.num_experts, ranks, slots) + 1)
    rows, bound = np.empty((load.num_layers, slots), dtype=np.int64), np.empty(load.num_layers)
    for layer, start in enumerate(by_tokens.placement.physical_to_logical.astype(np.int64)):
        table = copy_chances(load.counts[:, layer], batch, copies)
        placed, bound[layer] = plan_layer(table, start.reshape(ranks, -1), tolerance)
        rows[layer] = placed.ravel()
        if progress is not None:
            progress(layer + 1, load.num_layers)
    return rows, bound


def _plan_in_turn(
    by_tokens: PlanResult,
    batch: Batch,
    cluster: Cluster,
    tolerance: float,
    progress: Callable[[int, int], object] | None,
) -> Rows:
    """Plan where a batch takes one copy of an expert, all in turn: then a copy carries what tokens would, split evenly."""
    load = by_tokens.load
    alone = [
        copy_chances(load.counts[:, layer], batch, np.ones(1, int))[:, 0] for layer in range(load.num_layers)
    ]
    rows, bound = balanced(ExpertLoad(np.stack(alone)), cluster, tolerance)
    if progress is not None:
        progress(load.num_layers, load.num_layers)
    return rows.astype(np.int64), bound


_PLANS: Mapping[str, Callable[..., Rows]] = {"split": _plan_split, "one": _plan_in_turn}
