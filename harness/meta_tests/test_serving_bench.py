# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of serving is made of; nothing is served or timed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from expert_maps import read_placement
from harness.bench import serving, serving_arm, skewed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from typing_extensions import Self


def test_the_routers_of_the_skewed_model_favour_rank_0() -> None:
    import torch

    shape, weights = skewed.USUAL, skewed.weights()
    config = skewed.config()
    embedded = torch.nn.functional.rms_norm(weights["model.embed_tokens.weight"], (config["hidden_size"],))
    shares = []
    for layer in range(config["num_hidden_layers"]):
        logits = embedded @ weights[f"model.layers.{layer}.mlp.gate.weight"].T
        chosen = logits.topk(shape.top_k).indices
        shares.append(float((chosen < shape.experts // 2).float().mean()))
        # Tokens choose by themselves, too: no expert has all of them, and few have none.
        popularity = torch.bincount(chosen.flatten(), minlength=shape.experts) / len(embedded)
        assert popularity.max() < 0.9
        assert (popularity > 0).float().mean() > 0.75
    assert 0.6 < np.mean(shares) < 0.8


class FakeArm:
    """Rounds of known seconds: two ranks with a map are twice as fast, without copies four times, and a round is slow."""

    seen: ClassVar[list[FakeArm]] = []

    def __init__(self, _model: Path, options: Mapping[str, Any]) -> None:
        settings = options.get("additional_config", {}).get("expert_maps", {})
        self.record = settings.get("record_path")
        self.ranks = options.get("tensor_parallel_size", 1)
        path = settings.get("expert_map_path")
        self.placement = read_placement(path) if path else None
        self.rounds = 0
        self.seconds = 4.0 * self.ranks
        if self.placement is not None and self.ranks > 1:
            self.seconds /= 2 if self.placement.num_redundant_experts else 4
        self.seen.append(self)

    def __enter__(self) -> Self:
        return self

    def run_round(self) -> tuple[float, float]:
        self.rounds += 1
        if self.rounds <= serving._WARM_UP:
            return 1e9, 1e9
        slow = 10 if self.rounds == serving._WARM_UP + 2 else 1
        return slow * self.seconds, 3 * slow * self.seconds

    def __exit__(self, *_: object) -> None:
        if self.record:
            np.savez(self.record, load=np.array([[9.0, 7, 1, 1], [5, 5, 1, 1]]))


def test_maps_are_planned_from_what_was_recorded_and_ratios_are_those_of_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "Arm", FakeArm)
    monkeypatch.setattr(serving, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(FakeArm, "seen", [])
    found = serving.measure(tmp_path, rounds=3)
    recording, *arms = FakeArm.seen
    assert (recording.ranks, recording.rounds) == (2, 1)
    assert [arm.ranks for arm in arms] == [1, 1, 1, 2, 2, 2]
    copies = [None if arm.placement is None else arm.placement.num_redundant_experts for arm in arms]
    assert copies == [None, None, 0, None, serving._REDUNDANT, 0]
    assert {arm.rounds for arm in arms} == {serving._WARM_UP + 3}
    assert found["one_rank_plugin_to_one_rank_vllm_ratio"] == 1
    assert found["two_ranks_static_map_to_two_ranks_plugin_ratio"] == 2
    assert found["two_ranks_no_copies_to_two_ranks_plugin_cpu_ratio"] == 4
    assert found["two_ranks_no_copies_to_two_ranks_plugin_ratio_quartiles"] == [4, 4]
    assert found["two_ranks_plugin_median_tokens_per_s"] == 64 * 128 / 8
    assert found["two_ranks_plugin_balancedness"] == 0.577  # (18 + 12) / 2 / (16 + 10)
    assert float(str(found["two_ranks_no_copies_balancedness"])) > 0.9


def test_an_engine_that_ends_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    with serving_arm.Arm(tmp_path, {}) as arm:
        arm._process.kill()
        arm._process.wait()
        with pytest.raises(serving_arm.ArmError, match="an engine has ended"):
            arm.run_round()
