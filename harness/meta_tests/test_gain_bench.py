# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of a map's gain is made of; nothing is served or timed here."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from expert_maps import generate_placement, rank_load, read_placement
from harness.bench import gain, gain_ranks, skewed
from harness.bench.gain_ranks import Round, as_round
from harness.bench.serving_arm import ArmError
from harness.record import history

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

# Tokens of a step: rank 0 of two has most of them, and one expert of the first layer has more than half.
ROOT = Path(__file__).parents[2]
LOAD = np.full((2, 16), 8.0)
LOAD[0, 0], LOAD[0, 1], LOAD[1, :4] = 1600, 600, 500
BESIDE, EXPERTS = 0.08, 0.25  # seconds of a step without a map


def test_the_router_favours_rank_0_and_its_first_expert() -> None:
    import torch

    shape = replace(gain.SHAPE, inner=8)
    weights = skewed.weights(shape)
    embedded = torch.nn.functional.rms_norm(weights["model.embed_tokens.weight"], (shape.hidden,))
    for layer in range(shape.layers):
        logits = embedded @ weights[f"model.layers.{layer}.mlp.gate.weight"].T
        popularity = torch.bincount(logits.argmax(dim=1), minlength=shape.experts) / len(embedded)
        assert popularity[: shape.experts // 2].sum() > 0.85
        assert 0.2 < popularity[0] < 0.9
        assert (popularity > 0).sum() > 3
    plain = skewed.weights(replace(shape, first=0.0))["model.layers.0.mlp.gate.weight"]
    logits = embedded @ plain.T
    assert (logits.argmax(dim=1) == 0).float().mean() < 0.1


class FakeRanks:
    """Steps that take what the time model says, of a load that never changes."""

    seen: ClassVar[list[FakeRanks]] = []
    order: ClassVar[list[FakeRanks]] = []

    def __init__(self, _model: Path, options: Mapping[str, Any], ranks: int) -> None:
        assert ranks == gain.RANKS
        self.record = options.get("record_path")
        path = options.get("expert_map_path")
        linear = generate_placement("linear", num_experts=16, ep_size=2, num_layers=2)
        self.placement = read_placement(path) if path else linear
        self.has_map = path is not None
        self.slow = float(rank_load(linear, LOAD).max(axis=1).sum())
        self.seeds: list[int] = []
        self.seen.append(self)

    def __enter__(self) -> Self:
        return self

    def run_round(self, seed: int, prompts: int) -> Round:
        self.seeds.append(seed)
        self.order.append(self)
        loads = rank_load(self.placement, LOAD)
        hottest = float(loads.max(axis=1).sum())
        if self.record:
            np.savez(self.record, load=np.repeat(LOAD[None], prompts, axis=0))
        experts = EXPERTS * hottest / self.slow
        busy = 10 if self.has_map and seed == gain._COMPARED else 1
        tokens = (prompts * loads.sum(axis=0)).round().astype(int).tolist()
        digest = self.placement.digest if self.has_map else ""
        return Round(
            busy * prompts * (BESIDE + experts),
            prompts * experts,
            tokens,
            round(prompts * hottest),
            [digest] * gain.RANKS,
        )

    def __exit__(self, *_: object) -> None:
        pass


def test_a_prediction_from_the_server_without_a_map_is_set_beside_what_the_maps_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gain, "Ranks", FakeRanks)
    monkeypatch.setattr(FakeRanks, "seen", [])
    monkeypatch.setattr(FakeRanks, "order", [])
    proof, found = gain.measure(tmp_path, rounds=4)
    recording, off, *mapped = FakeRanks.seen
    assert [arm.placement.num_redundant_experts for arm in mapped] == [0, 2]
    # No prompt is served to measure that was recorded or fitted, and every arm gets the same ones.
    compared = off.seeds[-4:]
    assert all(arm.seeds[-4:] == compared for arm in mapped)
    assert not set(compared) & {*recording.seeds, *off.seeds[:-4]}
    # Every second time backwards; the server without a map is fitted before one with a map is there.
    turns = FakeRanks.order[-12:]
    assert turns[:6] == [off, *mapped, *mapped[::-1], off]
    assert proof["trace_steps"] == gain.TRACE_PROMPTS
    assert {arm: [digest] for arm, digest in proof["planned_digests"].items()} == {
        arm: digests for arm, digests in proof["served_digests"].items() if arm != "off"
    }
    assert (found["step_ms"], found["moe_ms"]) == (330.0, 250.0)
    # Where the time model holds, the median of the rounds is what was predicted; one slow round changes nothing.
    for arm, ranks in zip(("map", "map_with_copies"), mapped, strict=True):
        exact = (BESIDE + EXPERTS) / (BESIDE + EXPERTS * _hottest(ranks) / off.slow)
        assert found[f"{arm}_to_off_ratio"] == found[f"{arm}_predicted_ratio"] == round(exact, 3)
        assert found[f"{arm}_to_off_ratio_interval"][0] < found[f"{arm}_to_off_ratio_interval"][1]
        assert found[f"{arm}_measured_gain"] == pytest.approx(found[f"{arm}_predicted_gain"], abs=1e-4)
    assert found["map_to_off_ratio"] < found["map_with_copies_to_off_ratio"]
    assert (found["advice"], found["advice_redundant_experts"]) == ("yes", 2)
    assert found["off_balancedness"] < found["map_balancedness"] < found["map_with_copies_balancedness"]
    gain.show(found)


def test_prediction_and_measurement_are_kept_in_one_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gain, "Ranks", FakeRanks)
    monkeypatch.setattr(skewed, "write_model", _write_config)
    gain.main(record=tmp_path / "gain.jsonl", rounds=2, note="made for a test")
    (record,) = history.read(tmp_path / "gain.jsonl")
    assert (record.kind, record.settings["note"], record.settings["rounds"]) == (
        "serving",
        "made for a test",
        2,
    )
    assert {"map_to_off_ratio", "map_predicted_ratio"} <= record.performance.keys()
    assert record.proof["planned_digests"].keys() == {"map", "map_with_copies"}
    assert record.provenance.checkpoint is not None
    assert record.provenance.checkpoint.name == "skewed-top-1"


def test_the_page_says_what_the_record_does() -> None:
    records = history.read(ROOT / "harness/bench/records/serving.jsonl")
    found = [record for record in records if record.name == gain.NAME][-1].performance
    page = (ROOT / "docs/measured.md").read_text()
    for arm, name in zip(
        gain.ARMS, ("without a map", "planned map, no copies", "planned map, two copies"), strict=True
    ):
        rate, balance = found[f"{arm}_median_tokens_per_s"], found[f"{arm}_balancedness"]
        cells = ["", ""]
        if gain.ARMS[arm] is not None:
            low, high = found[f"{arm}_to_off_ratio_interval"]
            cells = [
                f"{found[f'{arm}_to_off_ratio']:.2f} [{low:.2f}, {high:.2f}]",
                f"{found[f'{arm}_predicted_ratio']:.2f}",
            ]
            for told in (f"{found[f'{arm}_predicted_gain']:.1%}", f"{found[f'{arm}_measured_gain']:.1%}"):
                assert told.replace("%", " %") in page
        line = f"| {name} | {rate:.0f} | {balance:.3f} | {' | '.join(cells)} |"
        assert line.replace("  ", " ") in page.replace("  ", " ")
    assert (
        f"a step takes {found['step_ms']:.1f} ms, the hottest rank's experts {found['moe_ms']:.1f} ms" in page
    )


def _write_config(folder: Path, shape: skewed.Shape) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(skewed.config(shape)))


def _hottest(ranks: FakeRanks) -> float:
    return float(rank_load(ranks.placement, LOAD).max(axis=1).sum())


def test_a_round_is_as_long_as_its_hottest_rank_in_every_layer() -> None:
    first = {"seconds": 2.0, "digest": "a", "calls": [[0.5, 30], [0.1, 10]]}
    second = {"seconds": 2.5, "digest": "a", "calls": [[0.2, 10], [0.4, 30]]}
    found = as_round([first, second])
    assert found == Round(2.5, 0.9, [40, 40], 60, ["a", "a"])
    assert found.balancedness == 40 / 60
    with pytest.raises(ArmError, match=r"experts were called \[2, 1\] times on the ranks"):
        as_round([first, {**second, "calls": [[0.2, 10]]}])
    with pytest.raises(ArmError, match=r"\[0\] times"):
        as_round([{**first, "calls": []}])


def test_an_interval_of_the_median_holds_it_and_not_the_outlier() -> None:
    low, high = gain.median_interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.2, 1.25, 90.0])
    assert 1.0 < low < 1.2 < high < 2


def test_a_rank_without_a_core_of_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(ArmError, match="1 cores are free to be used; expected 2, one for each rank"):
        gain_ranks.Ranks(tmp_path, {}, 2)


def test_a_map_that_was_not_served_is_no_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ignoring(FakeRanks):
        def run_round(self, seed: int, prompts: int) -> Round:
            return replace(super().run_round(seed, prompts), digests=[""] * gain.RANKS)

    monkeypatch.setattr(gain, "Ranks", Ignoring)
    monkeypatch.setattr(FakeRanks, "seen", [])
    monkeypatch.setattr(FakeRanks, "order", [])
    with pytest.raises(ArmError, match=r"map was served with \[''\]; expected the planned map \w+ alone"):
        gain.measure(tmp_path, rounds=4)
