# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `plan` and `rescale` do around the planner."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import metrics
from expert_maps.cli.work import work

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps.cli.loading import LoadOptions
    from expert_maps.formats.loads import LoadFile
    from expert_maps.load import ExpertLoad
    from expert_maps.planning import PlanResult


def map_text(result: PlanResult, found: LoadFile, said: LoadOptions, command: str) -> str:
    """Return the map that a command writes, with how it was made.

    Args:
        result: the plan.
        found: the load that was planned for.
        said: how it was read.
        command: which command it is.
    """
    from expert_maps.formats.native import dumps

    counts = np.ascontiguousarray(found.load.counts, dtype="<f8")
    made = {
        "command": command,
        "policy": result.policy,
        "load": f"{found.form}, SHA-256 of its counts {hashlib.sha256(counts.tobytes()).hexdigest()}",
    }
    name = None if said.model in {None, "-"} else Path(str(said.model)).name
    return dumps(result.placement, model=name, layers=found.layers, provenance=made)


def bytes_of_expert(expert_bytes: int | None, model: str | None) -> int | None:
    """Return what `--expert-bytes` says, else what the model's configuration does; None where neither can."""
    if expert_bytes is not None or model in {None, "-"}:
        return expert_bytes
    from expert_maps.models import model_counts

    return model_counts(str(model)).expert_bytes


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
