# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Expert placements for Mixture-of-Experts serving, and every map that follows from them.

A `Placement` says which logical expert sits in every physical slot. `expert_map`, `log2phy` and all other
maps are derived from it, so they cannot disagree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.counts import least_redundancy
from expert_maps.elastic import rescale
from expert_maps.errors import (
    ExpertMapsError,
    FormatError,
    LayoutError,
    LoadError,
    PlacementError,
    Violation,
)
from expert_maps.evaluate import ComparisonRow, Evaluation, compare, evaluate
from expert_maps.layouts import LAYOUT_NAMES, LayoutName, generate_placement
from expert_maps.load import ExpertLoad
from expert_maps.metrics import (
    Moves,
    balancedness,
    moves,
    over_steps,
    overall_balancedness,
    peak_to_mean,
    rank_load,
    step_peaks,
)
from expert_maps.placement import Placement
from expert_maps.planning import plan
from expert_maps.policies import POLICY_NAMES, PolicyName
from expert_maps.results import PlanResult
from expert_maps.splitting import ReplicaWeights, split_replicas

if TYPE_CHECKING:
    from expert_maps.formats import read_load, read_placement, read_weights, write_placement, write_weights

__version__ = "0.1.0"

__all__ = [
    "LAYOUT_NAMES",
    "POLICY_NAMES",
    "ComparisonRow",
    "Evaluation",
    "ExpertLoad",
    "ExpertMapsError",
    "FormatError",
    "LayoutError",
    "LayoutName",
    "LoadError",
    "Moves",
    "Placement",
    "PlacementError",
    "PlanResult",
    "PolicyName",
    "ReplicaWeights",
    "Violation",
    "__version__",
    "balancedness",
    "compare",
    "evaluate",
    "generate_placement",
    "least_redundancy",
    "moves",
    "over_steps",
    "overall_balancedness",
    "peak_to_mean",
    "plan",
    "rank_load",
    "read_load",
    "read_placement",
    "read_weights",
    "rescale",
    "split_replicas",
    "step_peaks",
    "write_placement",
    "write_weights",
]


# Readers and writers need a third of the modules that all of this needs; they are loaded when they are asked for.
_FORMATS = frozenset({"read_load", "read_placement", "read_weights", "write_placement", "write_weights"})


def __getattr__(name: str) -> object:
    """Return a reader or writer."""
    if name in _FORMATS:
        from expert_maps import formats

        found: object = getattr(formats, name)
        globals()[name] = found
        return found
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """List the public names; modules are found by importing them."""
    return __all__
