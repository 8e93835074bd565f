# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `plan` and `rescale` do around the planner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps import metrics
from expert_maps.cli.model import read_model
from expert_maps.cli.work import work
from expert_maps.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps.load import ExpertLoad
    from expert_maps.planning import PlanResult


def checked_model(model: str | None, trace: ExpertLoad) -> None:
    """Refuse a load of other layers or experts than the model's.

    Raises:
        FormatError: there is no such model.
        LoadError: as said.
    """
    if model is None:
        return
    counts = read_model(model)
    if (trace.num_layers, trace.num_experts) != (counts.num_layers, counts.num_experts):
        msg = (
            f"the load has {trace.num_layers} layers of {trace.num_experts} experts; expected "
            f"{counts.num_layers} MoE layers of {counts.num_experts}, as {counts.name} has"
        )
        raise LoadError(msg)


def ungrouped_balancedness(plans: Callable[..., PlanResult], trace: ExpertLoad, nodes: int) -> float | None:
    """Return the overall balancedness of the same plan without groups; None on one node, where they bind nothing.

    Args:
        plans: the planner's call, without groups, nodes and progress.
        trace: what is planned for.
        nodes: servers.
    """
    if nodes == 1:
        return None
    result = work("planning without groups", lambda progress: plans(progress=progress))
    return metrics.overall_balancedness(result.placement, trace)
