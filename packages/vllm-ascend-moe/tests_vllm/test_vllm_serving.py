# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The trained model on two CPU ranks beside one rank without the plugin: the same tokens, whatever moves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine import IN_PROCESS, Run, random_prompts, run
from safetensors.torch import load_file, save_file

from expert_maps import ReplicaWeights, generate_placement, read_load, read_placement, write_weights

# Its routers are skewed as those of large models are.
MODEL = Path(__file__).resolve().parents[3] / "accuracy" / "tiny-moe"
# As the model's own routers see them; a prompt's last token is generated from, so it is routed too.
PROMPTS = random_prompts(64, 256)
MAX_TOKENS = 16
LAYERS, EXPERTS, TOP_K = 4, 16, 4
# Whatever it saves.
MOVING = {"num_redundant_experts": 4, "dynamic": True, "step_interval": 8, "window_size": 8, "min_gain": 0}
TOKENS = sum(len(prompt) for prompt in PROMPTS) + len(PROMPTS) * (MAX_TOKENS - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def baseline(folder: Path) -> Run:
    return run(MODEL, PROMPTS, folder / "baseline", max_tokens=MAX_TOKENS, observes=True, environ=IN_PROCESS)


@pytest.fixture(scope="module")
def recorded(folder: Path, baseline: Run) -> Path:
    """The load of two ranks in vLLM's own layout."""
    record = folder / "load.npz"
    found = run(
        MODEL,
        PROMPTS,
        folder / "recorded",
        max_tokens=MAX_TOKENS,
        observes=True,
        tensor_parallel_size=2,
        expert_maps={"record_path": str(record)},
    )
    assert_same(found, baseline)
    # Ranks of one tensor-parallel group see the same tokens; the record counts them once.
    assert found.routes is not None
    assert found.routes[0] == found.routes[1] == read_load(record).total.astype(int).tolist()
    assert found.reports[-1][0]["recorded_steps"] == read_load(record).num_steps
    return record


def assert_same(found: Run, baseline: Run) -> None:
    for round_, tokens in enumerate(found.tokens):
        assert tokens == baseline.tokens[0]
        difference = np.abs(found.logprobs(round_) - baseline.logprobs())
        assert difference.max() <= 1e-4, f"log-probabilities differ by {difference.max()}"


def checksums_by_slot(report: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.str_]]:
    """Return every slot's checksum over all ranks, [L, P]."""
    return np.concatenate([np.array(rank["slot_checksums"]) for rank in report], axis=1)


def assert_slots_hold_their_experts(reports: list[list[dict[str, Any]]]) -> None:
    """An expert's checksum is the same in every slot, on every rank, and at all times."""
    known: dict[tuple[int, int], str] = {}
    for report in reports:
        placements = {rank["digest"] for rank in report}
        assert len(placements) == 1
        for (layer, slot), checksum in np.ndenumerate(checksums_by_slot(report)):
            expert = report[0]["physical_to_logical"][layer][slot]
            assert known.setdefault((layer, expert), checksum) == checksum
    assert len(set(known.values())) == len(known)


def test_without_the_plugin_nothing_changes(baseline: Run) -> None:
    assert "vllm-ascend-moe 0.1.0 inactive: expert_maps is not in the additional config" in baseline.log
    assert baseline.reports[0] == [{"active": False}]
    assert baseline.routes is not None
    assert np.sum(baseline.routes) == TOKENS * TOP_K * LAYERS


def test_expert_parallelism_alone(folder: Path, baseline: Run) -> None:
    found = run(
        MODEL, PROMPTS, folder / "plain", max_tokens=MAX_TOKENS, tensor_parallel_size=2, expert_maps={}
    )
    assert_same(found, baseline)
    assert [rank["ep_size"] for rank in found.reports[0]] == [2, 2]
    assert "Expert parallelism is enabled" in found.log
    lines = [line for line in found.log.splitlines() if "vllm-ascend-moe 0.1.0 active" in line]
    # The front end, the engine core and two workers.
    assert len(lines) == 4
    for line in lines:
        assert "device cpu, placement layout linear (0 redundant, static)" in line


def test_the_record_is_what_the_routers_chose_without_the_plugin(recorded: Path, baseline: Run) -> None:
    load = read_load(recorded)
    assert baseline.routes is not None
    assert np.array_equal(load.total, np.array(baseline.routes[0]))
    assert load.counts.sum() == TOKENS * TOP_K * LAYERS
    # A row a step: the sum of a step is the same in every layer.
    per_layer = load.counts.sum(axis=2)
    assert (per_layer == per_layer[:, :1]).all()


def test_the_recorded_load_is_planned_and_served(folder: Path, baseline: Run, recorded: Path) -> None:
    map_file = folder / "planned.json"
    command = [
        sys.executable,
        "-m",
        "expert_maps",
        "plan",
        str(recorded),
        "--physical",
        "20",
        "--ep-size",
        "2",
    ]
    subprocess.run([*command, "--output", str(map_file)], check=True, timeout=120)
    placement = read_placement(map_file)
    assert len({tuple(row) for row in placement.physical_to_logical.tolist()}) == LAYERS
    record = folder / "again.npz"
    # A map file alone: redundancy and vLLM's EPLB follow from it.
    found = run(
        MODEL,
        PROMPTS,
        folder / "static",
        max_tokens=MAX_TOKENS,
        rounds=2,
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        expert_maps={"expert_map_path": str(map_file), "record_path": str(record)},
    )
    assert_same(found, baseline)
    for report in found.reports:
        for rank in report:
            assert rank["physical_to_logical"] == placement.physical_to_logical.tolist()
            assert rank["digest"] == placement.digest
            assert rank["num_redundant_experts"] == 4
            assert rank["rearrangements"] == 0
    assert_slots_hold_their_experts(found.reports)
    assert f"digest {placement.digest[:12]}" in found.log
    # Two rounds of the same prompts, by logical expert whatever copy served.
    assert np.array_equal(read_load(record).total, 2 * read_load(recorded).total)


def test_experts_move_while_serving_compiled_as_a_server_is_by_default(folder: Path, baseline: Run) -> None:
    found = run(
        MODEL,
        PROMPTS,
        folder / "dynamic",
        max_tokens=MAX_TOKENS,
        rounds=3,
        tensor_parallel_size=2,
        enforce_eager=False,
        expert_maps=MOVING | {"log_balancedness": True},
    )
    assert_same(found, baseline)
    moved = [report[0]["rearrangements"] for report in found.reports]
    assert moved[0] == 0
    assert moved == sorted(set(moved))
    assert moved[-1] > 1
    first, last = found.reports[0], found.reports[-1]
    # Maps and bytes have moved, in every layer, and together.
    for layer in range(LAYERS):
        assert first[0]["physical_to_logical"][layer] != last[0]["physical_to_logical"][layer]
        assert (checksums_by_slot(first)[layer] != checksums_by_slot(last)[layer]).any()
    assert_slots_hold_their_experts(found.reports)
    assert "balancedness=" in found.log
    assert "Rearranged experts" in found.log


@pytest.fixture(scope="module")
def retrained(folder: Path) -> Path:
    """The same model with other experts, as a trainer would hand it over."""
    found = folder / "retrained"
    shutil.copytree(MODEL, found)
    (weights,) = found.glob("*.safetensors")
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if ".experts." in name:
            # Each expert in its own way: one that a slot should not hold is seen by its bytes.
            tensors[name] = tensor * (0.5 + int(name.split(".experts.")[1].split(".")[0]) / EXPERTS)
    save_file(tensors, weights, metadata={"format": "pt"})
    return found


def test_new_weights_are_served_by_every_copy_under_maps_that_have_moved(
    folder: Path, baseline: Run, retrained: Path
) -> None:
    alone = run(retrained, PROMPTS, folder / "retrained-alone", max_tokens=MAX_TOKENS, environ=IN_PROCESS)
    assert alone.tokens[0] != baseline.tokens[0]
    found = run(
        MODEL,
        PROMPTS,
        folder / "moved-anew",
        max_tokens=MAX_TOKENS,
        rounds=3,
        weights={1: retrained, 2: MODEL},
        tensor_parallel_size=2,
        expert_maps=MOVING,
    )
    for round_, wanted in enumerate((baseline, alone, baseline)):
        assert found.tokens[round_] == wanted.tokens[0]
        assert np.abs(found.logprobs(round_) - wanted.logprobs()).max() <= 1e-4
    # Reports are taken before the first round and after each.
    assert found.reports[1][0]["rearrangements"] >= 1
    assert_slots_hold_their_experts([found.reports[0], found.reports[1], found.reports[3]])
    assert_slots_hold_their_experts([found.reports[2]])


def test_uneven_shares_of_prompts_in_parts_where_one_phase_is_counted(folder: Path, baseline: Run) -> None:
    # Copies of the experts 0 … 3 of the layout take a fifth and four fifths of their tokens.
    weights = np.zeros((LAYERS, EXPERTS, 2))
    weights[..., 0] = 1
    weights[:, :4] = [0.2, 0.8]
    placement = generate_placement(
        "append", num_experts=EXPERTS, ep_size=2, num_redundant_experts=4, num_layers=LAYERS
    )
    # What ranks carry by them is not in the file.
    shares = ReplicaWeights(placement, weights, np.zeros((LAYERS, 2)), np.zeros(LAYERS))
    write_weights(shares, folder / "weights.npz")
    record = folder / "decode.npz"
    found = run(
        MODEL,
        PROMPTS,
        folder / "weighted",
        max_tokens=MAX_TOKENS,
        tensor_parallel_size=2,
        # Prompts are read in parts, beside tokens that are generated.
        max_num_batched_tokens=128,
        expert_maps={
            "layout": "append",
            "num_redundant_experts": 4,
            "replica_weights_path": str(folder / "weights.npz"),
            "record_path": str(record),
            "load_collection_phase": "decode",
        },
    )
    assert_same(found, baseline)
    generated = TOKENS - sum(len(prompt) for prompt in PROMPTS)
    assert read_load(record).total.sum(axis=1).tolist() == [generated * TOP_K] * LAYERS


def test_one_rank(folder: Path, baseline: Run) -> None:
    record = folder / "one.npz"
    alone = run(
        MODEL, PROMPTS, folder / "one", max_tokens=MAX_TOKENS, expert_maps={"record_path": str(record)}
    )
    assert_same(alone, baseline)
    assert baseline.routes is not None
    assert np.array_equal(read_load(record).total, np.array(baseline.routes[0]))
