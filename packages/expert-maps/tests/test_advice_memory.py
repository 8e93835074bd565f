# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`advise`: memory that is left, and what can be said of a model without a load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertMapsError
from expert_maps.advice import advise
from expert_maps.advice_rules import Served
from expert_maps.advice_without_load import advise_model
from expert_maps.models import ModelCounts, model_counts
from expert_maps.simulation import Costs

PRICE = Costs(expert_bytes=10**6, bandwidth=25.0)
SKEWED = np.random.default_rng(1).poisson(
    400 * np.random.default_rng(0).lognormal(sigma=1.0, size=(1, 2, 16)), size=(48, 2, 16)
)


def test_what_is_left_of_the_device() -> None:
    # 4, 5 and 6 slots of a layer on a rank, in 2 layers, of 1 MB.
    served = Served(device_memory=15 * 10**6, other_memory=4 * 10**6)
    found = advise(SKEWED, ep_size=4, costs=PRICE, served=served)
    assert [(row.num_redundant_experts, row.bytes_per_rank, row.bytes_left) for row in found.memory] == [
        (0, 8 * 10**6, 3 * 10**6),
        (4, 10 * 10**6, 10**6),
        (8, 12 * 10**6, -(10**6)),
    ]
    assert found.setting is not None
    assert found.setting.num_redundant_experts < 8
    assert found.bytes_left == 11 * 10**6 - (found.bytes_per_rank or 0)
    assert [rule.name for rule in found.rules] == ["memory of the device"]
    assert found.rules[0].text.startswith("8 redundant experts do not fit")
    assert {run.setting.num_redundant_experts for run in found.chosen_from} == {0, 4}
    assert advise(SKEWED, ep_size=4, redundant=[8], costs=PRICE).bytes_left is None
    with pytest.raises(ExpertMapsError, match="device_memory is 11000000; expected at least 12000000 bytes"):
        advise(SKEWED, ep_size=4, redundant=[8], costs=PRICE, served=Served(device_memory=11 * 10**6))


def test_of_a_model_memory_and_rules_are_known_and_what_to_record() -> None:
    found = advise_model(model_counts("deepseek-r1"), ep_size=32, served=Served("decode"))
    assert found.answer == found.answer_by_trace == "not enough data"
    assert [row.bytes_per_rank for row in found.memory] == [58 * slots * 44_050_944 for slots in (8, 9, 10)]
    assert [rule.name for rule in found.rules] == ["few experts a rank in decode"]
    assert "at least 24 steps" in found.reasons[-1]
    unknown = ModelCounts("m", 2, 16, expert_bytes_rule="quant_method x is not known")
    assert advise_model(unknown, ep_size=4).memory == []
    assert (
        "the bytes of an expert cannot be told: quant_method x" in advise_model(unknown, ep_size=4).reasons[1]
    )
    assert advise_model(unknown, ep_size=4, expert_bytes=7).memory[1].extra_bytes_per_rank == 14
    with pytest.raises(ExpertMapsError, match="expert_bytes is missing: quant_method x"):
        advise_model(unknown, ep_size=4, served=Served(device_memory=10))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("config.json")
    keys: dict[str, object] = {
        "num_hidden_layers": 2,
        "num_experts": 16,
        "hidden_size": 8,
        "moe_intermediate_size": 4,
    }
    keys |= {"torch_dtype": "bfloat16"}
    path.write_text(json.dumps({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **keys}))
    return path


def test_a_model_stands_in_place_of_a_load(config: Path) -> None:
    other = Path("other.json")
    other.write_text(config.read_text())
    told = [json.loads(run("advise", name, "--ep-size", 4, "--json").stdout) for name in (config, other, ".")]
    assert told[0]["answer"] == "not enough data"
    assert told[0]["memory"][1]["bytes_per_rank"] == 5 * 2 * 2 * 3 * 8 * 4
    assert told[0]["memory"] == told[1]["memory"] == told[2]["memory"]
    text = run("advise", "deepseek-r1", "--ep-size", 32, "--device-memory", 24, "--redundant", "0,64").stdout
    assert "memory with 64 redundant experts: 10 slots of a layer on a rank, 25.5 GB" in text
    assert text.count("does not fit") == 1


def test_a_load_that_is_no_model_is_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("load.json").write_text(json.dumps({"load": SKEWED.tolist()}))
    options = ("--expert-bytes", 10**6, "--bandwidth", 25, "--workers", 1, "--device-memory", 0.015)
    result = run("advise", "load.json", "--ep-size", 4, *options)
    assert result.stdout.startswith("worth it: yes"), result.output
    assert "of the device left" in result.stdout
    assert "other weights and activations are not counted" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nosuch",), "model 'nosuch': no such file, and no known name"),
        (("nosuch.npz",), "nosuch.npz (in"),
        (("deepseek-r1", "--layers", 3), "deepseek-r1 is a model; expected a load beside --model"),
        (("deepseek-r1", "--other-memory", 3), "--other-memory is given without --device-memory"),
        (("deepseek-r1", "--device-memory", 0), "--device-memory is 0; expected a number of GB above 0"),
        (("load.npy", "--device-memory", 1), "expected --expert-bytes or --model"),
        (("load.npy", "--least-gain", 200), "--least-gain is 200; expected percent from 0 to 100"),
        (("load.npy", "--policies", "best"), "--policies is 'best'; expected one of off, balanced"),
    ],
)
def test_what_is_refused(
    words: tuple[object, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("load.npy", SKEWED)
    assert_one_line_error(run("advise", *words, "--ep-size", 4), said)
