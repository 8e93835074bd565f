# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults that only the workers can see: the start stops with a reason, and no rank is left waiting."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import tiny_models
from engine import FailedError, free_port, random_prompts, run, start_server, wait_all

from expert_maps import generate_placement, write_placement

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))


def test_a_map_for_another_number_of_layers(tmp_path: Path) -> None:
    # Four layers, the first of them dense: a map has rows for the others only.
    model = tiny_models.qwen3_moe_dense_first(tmp_path / "model")
    path = tmp_path / "map.json"
    write_placement(generate_placement(num_experts=8, ep_size=2, num_redundant_experts=2, num_layers=4), path)
    with pytest.raises(FailedError) as failure:
        run(
            model,
            random_prompts(1, 256),
            tmp_path / "run",
            tensor_parallel_size=2,
            expert_maps={"expert_map_path": str(path)},
        )
    log = str(failure.value)
    assert "map.json has 4 layers; expected 3, as many as the model has MoE layers" in log
    assert "it took too long" not in log


def test_ranks_that_were_given_different_files(model: Path, tmp_path: Path) -> None:
    port = free_port()
    started = []
    for rank, layout in enumerate(["ring", "append"]):
        path = tmp_path / f"{layout}.json"
        write_placement(
            generate_placement(layout, num_experts=16, ep_size=2, num_redundant_experts=4, num_layers=4), path
        )
        options = json.dumps({"expert_maps": {"expert_map_path": str(path)}})
        # Each rank is a server of its own, as on two nodes.
        arguments = ["--data-parallel-size", "2", "--data-parallel-rank", str(rank)]
        arguments += ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(port)]
        arguments += ["--additional-config", options]
        started.append(start_server(model, tmp_path / str(rank), *arguments, forks=True))
    codes = wait_all([process for process, _, _ in started], seconds=200)
    assert None not in codes, "a rank was left waiting"
    assert 0 not in codes
    for _, _, log in started:
        text = log.read_text(encoding="utf-8", errors="replace")
        assert "ranks have different placements: rank 0" in text
        assert "ring.json" in text
        assert "append.json" in text
