# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Expert placements for Mixture-of-Experts serving, and every map that follows from them.

A `Placement` says which logical expert sits in every physical slot. `expert_map`, `log2phy` and all other
maps are derived from it, so they cannot disagree.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from expert_maps._version import __version__

if TYPE_CHECKING:
    from expert_maps.activation import Batch, activated
    from expert_maps.comparison import ComparisonRow, compare
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
    from expert_maps.evaluate import Evaluation, evaluate
    from expert_maps.formats import (
        inspect_load,
        inspect_map,
        read_load,
        read_placement,
        read_weights,
        write_placement,
        write_weights,
    )
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
    from expert_maps.per_layer import PerLayerPlan, plan_per_layer
    from expert_maps.placement import Placement
    from expert_maps.planning import plan
    from expert_maps.policies import POLICY_NAMES, PolicyName
    from expert_maps.results import PlanResult
    from expert_maps.splitting import ReplicaWeights, split_replicas


__all__ = [
    "LAYOUT_NAMES",
    "POLICY_NAMES",
    "Batch",
    "ComparisonRow",
    "Evaluation",
    "ExpertLoad",
    "ExpertMapsError",
    "FormatError",
    "LayoutError",
    "LayoutName",
    "LoadError",
    "Moves",
    "PerLayerPlan",
    "Placement",
    "PlacementError",
    "PlanResult",
    "PolicyName",
    "ReplicaWeights",
    "Violation",
    "__version__",
    "activated",
    "balancedness",
    "compare",
    "evaluate",
    "generate_placement",
    "inspect_load",
    "inspect_map",
    "least_redundancy",
    "moves",
    "over_steps",
    "overall_balancedness",
    "peak_to_mean",
    "plan",
    "plan_per_layer",
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

# Where each name is at home. It is loaded when it is first used, so that the command line starts at once and Ctrl-C
# finds it ready.
_HOMES: dict[str, str] = {
    name: module
    for module, names in (
        ("activation", ("Batch", "activated")),
        ("comparison", ("ComparisonRow", "compare")),
        ("counts", ("least_redundancy",)),
        ("elastic", ("rescale",)),
        (
            "errors",
            ("ExpertMapsError", "FormatError", "LayoutError", "LoadError", "PlacementError", "Violation"),
        ),
        ("evaluate", ("Evaluation", "evaluate")),
        (
            "formats",
            (
                "inspect_load",
                "inspect_map",
                "read_load",
                "read_placement",
                "read_weights",
                "write_placement",
                "write_weights",
            ),
        ),
        ("layouts", ("LAYOUT_NAMES", "LayoutName", "generate_placement")),
        ("load", ("ExpertLoad",)),
        (
            "metrics",
            (
                "Moves",
                "balancedness",
                "moves",
                "over_steps",
                "overall_balancedness",
                "peak_to_mean",
                "rank_load",
                "step_peaks",
            ),
        ),
        ("per_layer", ("PerLayerPlan", "plan_per_layer")),
        ("placement", ("Placement",)),
        ("planning", ("plan",)),
        ("policies", ("POLICY_NAMES", "PolicyName")),
        ("results", ("PlanResult",)),
        ("splitting", ("ReplicaWeights", "split_replicas")),
    )
    for name in names
}


def __getattr__(name: str) -> object:
    """Load a public name."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return list(__all__)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Keep a public name from being hidden by the module in which it is at home, as `evaluate` is."""
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
