# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a rearrangement: what it times of ours is the whole way from the load to a plan that moves something."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import Placement, balancedness, generate_placement
from harness.bench import ascend_plans

if TYPE_CHECKING:
    import pytest


def test_our_side_is_planned_by_what_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where vLLM is not installed, its interface of a policy is any class.
    policy: Any = ModuleType("vllm.distributed.eplb.policy")
    policy.AbstractEplbPolicy = object
    monkeypatch.setitem(sys.modules, "vllm.distributed.eplb.policy", policy)
    start = generate_placement(num_experts=16, ep_size=4, num_redundant_experts=4, num_layers=3)
    load = np.random.default_rng(0).integers(1, 1000, (3, 16)) ** 2
    rows = ascend_plans._ours(start, ascend_plans._by_slot(start, load))()
    planned = Placement(rows, 4, num_logical_experts=16)
    assert (balancedness(planned, load) >= balancedness(start, load)).all()
    assert planned != start
