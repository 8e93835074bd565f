# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The committed tiny checkpoints are whole, small, and what their pages say."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.tiny import checkpoint, problems, tokenizer
from harness.tiny.models import Kind
from harness.tiny.optimizer import Muon, orthogonalize

ACCURACY = Path(__file__).resolve().parents[2] / "accuracy"
FOLDERS = {Kind.qwen3_moe: ACCURACY / "tiny-moe", Kind.deepseek: ACCURACY / "tiny-deepseek"}
FILES = {
    "README.md",
    "SHA256SUMS",
    "chat_template.jinja",
    "config.json",
    "fewshot.jsonl",
    "generation_config.json",
    "held_out.jsonl",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_log.json",
}
MEBIBYTES = 2**20
ARCHITECTURES = {Kind.qwen3_moe: "Qwen3MoeForCausalLM", Kind.deepseek: "Glm4MoeForCausalLM"}
BIAS = "e_score_correction_bias"

both = pytest.mark.parametrize("kind", list(Kind))


def faults(folder: Path) -> list[str]:
    """Compare a folder's files with its sums; return what differs."""
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text("utf-8").splitlines())
    there = {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    found = [f"{name}: in one only" for name in sorted(there ^ listed.keys())]
    contents = {name: (folder / name).read_bytes() for name in sorted(there & listed.keys())}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return found + [f"{name}: other content" for name in sums if sums[name] != listed[name]]


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content


def tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the head of the weights' file: name → dtype, shape and offsets."""
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head: dict[str, dict[str, Any]] = json.loads(content[8 : 8 + length])
    assert head.pop("__metadata__") == {"format": "pt"}
    assert max(tensor["data_offsets"][1] for tensor in head.values()) == len(content) - 8 - length
    return head


def values(folder: Path, name: str) -> torch.Tensor:
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    tensor = json.loads(content[8 : 8 + length])[name]
    first, last = (8 + length + offset for offset in tensor["data_offsets"])
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[tensor["dtype"]]
    return torch.frombuffer(bytearray(content[first:last]), dtype=dtype).reshape(tensor["shape"])


@both
def test_files_are_all_there_as_summed_and_small(kind: Kind) -> None:
    folder = FOLDERS[kind]
    assert {path.name for path in folder.iterdir()} == FILES
    assert faults(folder) == []
    assert checkpoint.sums(folder) == (folder / "SHA256SUMS").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * MEBIBYTES


def test_sums_find_changed_missing_and_added_files(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(FOLDERS[Kind.qwen3_moe], folder)
    (folder / "held_out.jsonl").write_text("", encoding="utf-8")
    (folder / "README.md").unlink()
    (folder / "more").touch()
    assert faults(folder) == ["README.md: in one only", "more: in one only", "held_out.jsonl: other content"]


@both
def test_config_says_what_is_promised_under_every_name(kind: Kind) -> None:
    config = read(FOLDERS[kind], "config.json")
    assert config["architectures"] == [ARCHITECTURES[kind]]
    assert config["num_experts"] == config["num_local_experts"] == 16
    assert config["num_experts_per_tok"] == 4
    assert config["num_hidden_layers"] == 4
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["num_attention_heads"] % 4 == config["num_key_value_heads"] % 2 == 0
    for width in ("hidden_size", "moe_intermediate_size", "intermediate_size"):
        assert config[width] % 64 == 0  # 32 on each of two ranks
    if kind is Kind.deepseek:
        wanted = {
            "n_routed_experts": 16,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "scoring_func": "sigmoid",
            "first_k_dense_replace": 1,
        }
        assert wanted.items() <= config.items()
    else:
        assert config["router_aux_loss_coef"] == 0


@both
def test_weights_have_the_shapes_and_types_of_the_config(kind: Kind) -> None:
    config, head = read(FOLDERS[kind], "config.json"), tensors(FOLDERS[kind])
    assert {tensor["dtype"] for name, tensor in head.items() if not name.endswith(BIAS)} == {"BF16"}
    size, width = config["hidden_size"], config["moe_intermediate_size"]
    assert head["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], size]
    for layer in range(config.get("first_k_dense_replace", 0), 4):
        assert head[f"model.layers.{layer}.mlp.gate.weight"]["shape"] == [16, size]
        for expert in range(16):
            prefix = f"model.layers.{layer}.mlp.experts.{expert}"
            assert head[f"{prefix}.gate_proj.weight"]["shape"] == [width, size]
            assert head[f"{prefix}.down_proj.weight"]["shape"] == [size, width]
    assert read(FOLDERS[kind], "train_log.json")["parameters"] == sum(
        torch.Size(tensor["shape"]).numel() for name, tensor in head.items() if not name.endswith(BIAS)
    )


def test_corrections_were_trained() -> None:
    folder = FOLDERS[Kind.deepseek]
    names = [name for name in tensors(folder) if name.endswith(BIAS)]
    assert len(names) == 3
    for name in names:
        bias = values(folder, name)
        assert bias.dtype == torch.float32
        assert bias.shape == (16,)
        assert len(set(bias.tolist())) > 8
        assert bias.abs().max() > 0.01
    assert not any(name.endswith(BIAS) for name in tensors(FOLDERS[Kind.qwen3_moe]))


@both
def test_problems_and_tokenizer_are_what_the_generator_gives(kind: Kind) -> None:
    folder = FOLDERS[kind]
    expected = {
        "held_out.jsonl": problems.to_jsonl(problems.held_out()),
        "fewshot.jsonl": problems.to_jsonl(problems.fewshot()),
        "tokenizer.json": tokenizer.tokenizer_json(),
        "chat_template.jinja": tokenizer.CHAT_TEMPLATE,
    }
    for name, text in expected.items():
        assert (folder / name).read_bytes() == text.encode(), name
    assert read(folder, "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    vocabulary = read(folder, "tokenizer.json")["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(read(folder, "config.json")["vocab_size"]))


@both
def test_the_log_says_how_it_was_made_and_reaches_the_accuracy(kind: Kind) -> None:
    log = read(FOLDERS[kind], "train_log.json")
    assert log["model"] == kind.value
    assert f"train {kind.value}" in log["command"]
    assert {"seed", "threads", "tokens", "steps", "cpu_minutes"} <= log.keys()
    assert log["cpu_minutes"] <= 45
    assert {"python", "torch", "transformers"} <= log["versions"].keys()
    accuracy = log["accuracy"]
    assert accuracy["held_out"] == 1319
    for name in ("bfloat16_0shot", "float32_0shot"):
        assert accuracy[name]["exact_match"] == round(accuracy[name]["correct"] / 1319, 4)
        assert accuracy[name]["exact_match"] >= 0.95
    assert checkpoint.readme(log) == (FOLDERS[kind] / "README.md").read_text(encoding="utf-8")
    # Nothing evens out the loads of the first; the corrections of the second do.
    skew = max(log["history"][-1]["max_over_mean_load"])
    assert skew > 2 if kind is Kind.qwen3_moe else skew < 2


def test_the_chat_template_writes_what_was_trained_on() -> None:
    jinja2 = pytest.importorskip("jinja2")
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "#### 1"},
        {"role": "user", "content": "Two?"},
    ]
    text = jinja2.Template(tokenizer.CHAT_TEMPLATE).render(messages=turns)
    assert text == "Question: One?\nAnswer: #### 1\n\nQuestion: Two?\nAnswer:"


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16), (3, 16, 8)])
def test_muon_orthogonalizes_each_matrix_of_a_stack(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalize(matrices)
    strengths = torch.linalg.svdvals(result)
    assert strengths.min() > 0.3
    assert strengths.max() < 1.3
    if len(shape) == 3:
        alone = torch.stack([orthogonalize(one) for one in matrices])
        torch.testing.assert_close(result, alone)


def test_muon_goes_downhill() -> None:
    goal = torch.eye(8)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    muon = Muon([weight], rate=0.05)
    for _ in range(60):
        muon.zero_grad()
        loss = (weight - goal).square().sum()
        loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
        muon.step()
    assert loss < 0.5
