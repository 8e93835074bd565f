# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of serving is made of; nothing is served or timed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expert_maps import read_placement
from harness.bench import serving, skewed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def test_the_routers_of_the_skewed_model_favour_rank_0() -> None:
    import torch

    weights = skewed.weights()
    config = skewed.config()
    embedded = torch.nn.functional.rms_norm(weights["model.embed_tokens.weight"], (config["hidden_size"],))
    shares = []
    for layer in range(config["num_hidden_layers"]):
        logits = embedded @ weights[f"model.layers.{layer}.mlp.gate.weight"].T
        chosen = logits.topk(skewed.TOP_K).indices
        shares.append(float((chosen < skewed.EXPERTS // 2).float().mean()))
        # Tokens choose by themselves, too: no expert has all of them, and few have none.
        popularity = torch.bincount(chosen.flatten(), minlength=skewed.EXPERTS) / len(embedded)
        assert popularity.max() < 0.9
        assert (popularity > 0).float().mean() > 0.75
    assert 0.6 < np.mean(shares) < 0.8


def test_the_skewed_model_is_what_transformers_loads() -> None:
    transformers = pytest.importorskip("transformers", reason="comes with the extra tiny")
    import torch

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**skewed.config())
        )
    assert sum(weight.numel() for weight in model.parameters()) == sum(
        weight.numel() for weight in skewed.weights().values()
    )


def test_maps_are_planned_from_what_was_recorded_and_ratios_are_of_the_medians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = {"one_rank": 2.0, "two_ranks": 4.0}
    seen: list[dict[str, Any]] = []

    def time_arm(_model: Path, rounds: int, options: Mapping[str, Any]) -> list[tuple[float, float]]:
        settings = options.get("additional_config", {}).get("expert_maps", {})
        if path := settings.get("record_path"):
            np.savez(path, load=np.array([[9.0, 7, 1, 1], [5, 5, 1, 1]]))
            return [(9.0, 9.0)] * rounds
        map_path = settings.get("expert_map_path")
        placement = read_placement(map_path) if map_path else None
        seen.append({"ranks": options.get("tensor_parallel_size", 1), "placement": placement})
        wall = speed["two_ranks" if "tensor_parallel_size" in options else "one_rank"]
        if placement is not None:
            wall /= 2 if placement.num_redundant_experts else 4
        # One round that took long is no median.
        return [(wall, 3 * wall), (wall, 3 * wall), (100.0, 300.0)]

    monkeypatch.setattr(serving, "_time_arm", time_arm)
    found = serving.measure(tmp_path, rounds=3, repeats=2)
    assert [arm["ranks"] for arm in seen] == [1, 1, 2, 1, 2, 2] * 2
    copies = [
        None if arm["placement"] is None else arm["placement"].num_redundant_experts for arm in seen[:6]
    ]
    assert copies == [None, None, None, 0, serving._REDUNDANT, 0]
    assert found["one_rank_plugin_to_one_rank_vllm_ratio"] == 1
    assert found["two_ranks_static_map_to_two_ranks_plugin_ratio"] == 2
    assert found["two_ranks_no_copies_to_two_ranks_plugin_cpu_ratio"] == 4
    assert found["two_ranks_plugin_balancedness"] == 0.577  # (18 + 12) / 2 / (16 + 10)
    assert float(str(found["two_ranks_no_copies_balancedness"])) > 0.9
