# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Policies: each decides, for a load, which experts get copies and on which rank every copy sits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from expert_maps._library import load_library as load_planner
from expert_maps.policies import deepseek
from expert_maps.policies.balanced import DEFAULT_TOLERANCE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from expert_maps.policies.base import Cluster, Policy

PolicyName = Literal["balanced", "deepseek", "deepseek_hierarchical", "deepseek_global", "reference"]
# `reference` is `balanced` once more, to be read: it plans and is simulated where it is named, and never served with.
REFERENCE: PolicyName = "reference"
EVERY_POLICY: tuple[PolicyName, ...] = get_args(PolicyName)
POLICY_NAMES: tuple[PolicyName, ...] = tuple(name for name in EVERY_POLICY if name != REFERENCE)

# What `expert_maps.plan` plans with where no policy is named.
DEFAULT_POLICY: PolicyName = "balanced"

# `load_planner` returns the compiled planner that `balanced` calls, or says why there is none.


def _reference(load: NDArray[np.float64], cluster: Cluster) -> NDArray[np.int64]:
    from expert_maps.reference.policy import plan_rows

    return plan_rows(load, cluster)


# Those that plan from a sum of loads alone. `balanced` knows more: windows, a present placement, its own bound.
POLICIES: dict[PolicyName, Policy] = {
    "deepseek": deepseek.automatic,
    "deepseek_hierarchical": deepseek.hierarchical,
    "deepseek_global": deepseek.globally,
    "reference": _reference,
}

__all__ = [
    "DEFAULT_POLICY",
    "DEFAULT_TOLERANCE",
    "EVERY_POLICY",
    "POLICIES",
    "POLICY_NAMES",
    "PolicyName",
    "load_planner",
]
