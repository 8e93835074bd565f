# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Other ways of routing, with random weights: two ranks whose experts move beside one rank without the plugin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny_models
from engine import IN_PROCESS, random_prompts, run
from test_vllm_serving import assert_same, assert_slots_hold_their_experts

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = random_prompts(64, 256, seed=1)
# Whatever it saves: a few tokens never pay for a move.
MOVING = {"num_redundant_experts": 4, "dynamic": True, "step_interval": 4, "window_size": 4, "min_gain": 0}


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_tokens_are_those_of_one_rank(name: str, tmp_path: Path) -> None:
    model = getattr(tiny_models, name)(tmp_path / name)
    alone = run(model, PROMPTS, tmp_path / "alone", max_tokens=12, environ=IN_PROCESS)
    found = run(model, PROMPTS, tmp_path / "two", max_tokens=12, tensor_parallel_size=2, expert_maps=MOVING)
    assert_same(found, alone)
    assert found.reports[-1][0]["rearrangements"] > 1
    assert found.reports[0][0]["digest"] != found.reports[-1][0]["digest"]
    assert_slots_hold_their_experts(found.reports)


def test_int8_experts_move_with_their_scales(tmp_path: Path) -> None:
    model = tiny_models.qwen3_moe_w8a8(tmp_path / "w8a8")
    # Every token takes every expert: rounding, which int8 makes visible, then changes no choice of experts.
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["num_experts_per_tok"] = 16
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    alone = run(
        model,
        PROMPTS,
        tmp_path / "alone",
        dtype="float16",
        max_tokens=1,
        expert_maps={},
        environ=IN_PROCESS,
    )
    found = run(
        model,
        PROMPTS,
        tmp_path / "two",
        dtype="float16",
        max_tokens=1,
        rounds=6,
        tensor_parallel_size=2,
        # Where all experts have the same load, `balanced` would rightly move none.
        expert_maps=MOVING | {"step_interval": 1, "window_size": 1, "policy": "deepseek"},
    )
    assert found.reports[0][0]["digest"] != found.reports[-1][0]["digest"]
    # Scales are part of a slot's checksum.
    assert_slots_hold_their_experts(found.reports)
    for round_ in range(6):
        difference = np.abs(found.logprobs(round_) - alone.logprobs())
        assert difference.mean() < 0.25
