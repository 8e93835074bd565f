# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The short form of what is shown of serving, for versions other than the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tiny_models
from engine import IN_PROCESS, random_prompts, run
from test_vllm_serving import assert_same, assert_slots_hold_their_experts

from expert_maps import plan, read_load, write_placement

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = random_prompts(64, 256, seed=3)


def test_recorded_planned_served_and_moved(tmp_path: Path) -> None:
    # The first of four layers is dense.
    model = tiny_models.qwen3_moe_dense_first(tmp_path / "model")
    alone = run(model, PROMPTS, tmp_path / "alone", max_tokens=12, environ=IN_PROCESS)
    record = tmp_path / "load.npz"
    found = run(
        model,
        PROMPTS,
        tmp_path / "recorded",
        max_tokens=12,
        observes=True,
        tensor_parallel_size=2,
        expert_maps={"record_path": str(record)},
    )
    assert_same(found, alone)
    load = read_load(record)
    assert found.routes is not None
    assert np.array_equal(load.total, np.array(found.routes[0]))
    placement = plan(load, num_physical_experts=12, ep_size=2).placement
    write_placement(placement, tmp_path / "map.json")
    served = run(
        model,
        PROMPTS,
        tmp_path / "served",
        max_tokens=12,
        rounds=2,
        tensor_parallel_size=2,
        expert_maps={
            "expert_map_path": str(tmp_path / "map.json"),
            "dynamic": True,
            "step_interval": 8,
            "window_size": 8,
            "min_gain": 0,
        },
    )
    assert_same(served, alone)
    assert served.reports[0][0]["digest"] == placement.digest
    assert served.reports[-1][0]["rearrangements"] > 0
    assert_slots_hold_their_experts(served.reports)
