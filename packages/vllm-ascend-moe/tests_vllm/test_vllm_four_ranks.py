# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server with the plugin on four ranks: two tensor-parallel ones for each of two data-parallel ones.

Apart from the servers of two ranks, so that both can run at a time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import tiny_models
from asking import TOKENS, assert_answers_as, config, report, run_alone
from engine import server

from expert_maps import read_load

if TYPE_CHECKING:
    from pathlib import Path

# Four ranks of two GiB, and as much again.
FOUR_RANKS_GIB = 14


@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < FOUR_RANKS_GIB * 2**30,
    reason=f"four ranks need {FOUR_RANKS_GIB} GiB of memory",
)
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_tensor_and_data_parallel_over_http(name: str, tmp_path: Path) -> None:
    # The first splits its tokens over tensor-parallel ranks, in the second they all see the same.
    model = getattr(tiny_models, name)(tmp_path / name)
    alone = run_alone(model, tmp_path / "alone")
    record = tmp_path / "load.npz"
    options = config(
        num_redundant_experts=4,
        dynamic=True,
        step_interval=16,
        window_size=16,
        min_gain=0,
        record_path=str(record),
    )
    arguments = ["--tensor-parallel-size", "2", "--data-parallel-size", "2", *options]
    # Six processes.
    with server(model, tmp_path, *arguments, forks=True) as running:
        assert_answers_as(alone, running)
        found = report(running)
        assert found[0]["ep_size"] == 4
        assert found[0]["rearrangements"] > 0
        assert len({rank["digest"] for rank in found}) == 1
        assert running.stop() == 0
    layers, top_k = {"qwen3_moe": (4, 4), "mixtral": (3, 2)}[name]
    assert read_load(record).total.sum(axis=1).tolist() == [TOKENS * top_k] * layers
