# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints with random weights, in the layouts of the models whose experts vLLM places.

Each public function writes one checkpoint (config.json, model.safetensors, a tokenizer) into a folder and
returns that folder. The same seed gives the same weights.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

# Hidden sizes are multiples of 32, as vLLM's CPU experts want them, also when two ranks share each expert.
EXPERT_WIDTH = 64
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LETTERS = "etaoinshrdlu"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """256 tokens of plain text, so that what is generated stays readable and decodes without loss."""
    merges = [(first, second) for first in LETTERS for second in f"{LETTERS} "]
    tokens = [*SPECIAL.values(), "\n", *map(chr, range(32, 127)), *map("".join, merges)]
    return {token: index for index, token in enumerate(tokens)}, merges


VOCABULARY, MERGES = _vocabulary()
COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    **{f"{name}_id": VOCABULARY[token] for name, token in SPECIAL.items() if name != "unk_token"},
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # A head size that vLLM's CPU attention has a kernel for.
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": False,
    "dtype": "float32",
}
DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 64,  # as transformers has it: what positions rotate
    # vLLM's CPU kernel for MLA is compiled for 512 + 64 only. Without MLA (VLLM_MLA_DISABLE=1) a head has
    # 32 + 64 = 96 values, which its CPU attention has a kernel for.
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    # Like released models. With plain positions vLLM 0.32 computes wrong queries when eager on a CPU: its
    # kernel takes the heads of these queries for tokens, and reads positions past the end.
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "first_k_dense_replace": 1,
    "moe_intermediate_size": EXPERT_WIDTH,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(BPE(vocab=VOCABULARY, merges=MERGES, unk_token=SPECIAL["unk_token"]))
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _json(folder / "tokenizer_config.json", {**config, **SPECIAL, "chat_template": CHAT_TEMPLATE})


def _random(name: str, tensor: torch.Tensor, generator: torch.Generator, *, sigmoid: bool) -> torch.Tensor:
    """Values for a tensor, of a spread that keeps activations near one whatever a layer's width."""
    if "norm" in name:
        return torch.ones_like(tensor)
    values = torch.randn(tensor.shape, generator=generator)
    if name.endswith("e_score_correction_bias"):
        return values / 5
    if "embed_tokens" in name:
        # Small beside what layers add: the experts, not the last token alone, decide the next one.
        return values / 2
    values /= tensor.shape[-1] ** 0.5
    if "lm_head" in name:
        # No special token is ever the most likely one, so that no generation ends early.
        values[: len(SPECIAL)] = 0
        return values * 4
    if name.endswith(".gate.weight"):
        # Rows of unequal length: an expert with a long one is chosen often, with a short one seldom.
        lengths = torch.linspace(0.25, 1.5, len(values))[torch.randperm(len(values), generator=generator)]
        # Sigmoids of large logits would all be close to one.
        return values * lengths[:, None] * (2 if sigmoid else 4)
    return values if "self_attn" in name else values * 1.5


def _write(folder: Path, seed: int, model_type: str, config: dict[str, Any]) -> Path:
    settings = AutoConfig.for_model(model_type, **{**COMMON, **config})
    model = AutoModelForCausalLM.from_config(settings)
    generator = torch.Generator().manual_seed(seed)
    sigmoid = config.get("scoring_func") == "sigmoid"
    # In the order of their names, so that the weights of a seed do not depend on how the model is written.
    for name, tensor in sorted(model.state_dict().items()):
        tensor.copy_(_random(name, tensor, generator, sigmoid=sigmoid))
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    written = _read(folder / "config.json")
    # What other versions of transformers and vLLM call the same.
    written["torch_dtype"], written["rope_theta"] = "float32", settings.rope_parameters["rope_theta"]
    if "num_local_experts" in written or "num_experts" in written:
        written["num_experts"] = written["num_local_experts"] = settings.num_experts
    _json(folder / "config.json", written)
    return folder


def _qwen3_moe(folder: Path, seed: int, experts: int, top_k: int, dense: list[int]) -> Path:
    config = {
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": EXPERT_WIDTH,
        "norm_topk_prob": True,
        "mlp_only_layers": dense,
    }
    return _write(folder, seed, "qwen3_moe", config)


def qwen3_moe(folder: Path, seed: int = 0) -> Path:
    """Four layers of 16 experts, 4 for each token."""
    return _qwen3_moe(folder, seed, experts=16, top_k=4, dense=[])


def qwen3_moe_dense_first(folder: Path, seed: int = 0) -> Path:
    """A dense layer, then three of 8 experts, 2 for each token."""
    return _qwen3_moe(folder, seed, experts=8, top_k=2, dense=[0])


def qwen3_moe_w8a8(folder: Path, seed: int = 0) -> Path:
    """`qwen3_moe` of the same seed with experts in int8 (compressed-tensors), the rest in bfloat16.

    Weights have a scale for each output channel; a token gets its own as the model runs. vLLM's own experts
    for this need AMX on x86: without it only a plugin's can run this model.
    """
    qwen3_moe(folder, seed)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if ".experts." in name:
            # Divided by the scale as it is stored: its own rounding then costs nothing.
            scale = (tensor.abs().amax(dim=1, keepdim=True) / 127).to(torch.bfloat16)
            tensors[name] = (tensor / scale.float()).round().clamp(-127, 127).to(torch.int8)
            tensors[f"{name}_scale"] = scale
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**int8, "strategy": "channel", "dynamic": False},
        "input_activations": {**int8, "strategy": "token", "dynamic": True},
    }
    config = _read(folder / "config.json")
    config["torch_dtype"] = config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
    }
    _json(folder / "config.json", config)
    return folder


def qwen3_dense(folder: Path, seed: int = 0) -> Path:
    """Four layers without experts."""
    return _write(folder, seed, "qwen3", {})


def mixtral(folder: Path, seed: int = 0) -> Path:
    """Three layers of 8 experts, 2 for each token."""
    config = {
        "num_hidden_layers": 3,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        # The width of an expert: no layer is dense.
        "intermediate_size": EXPERT_WIDTH,
    }
    return _write(folder, seed, "mixtral", config)


def deepseek_v2(folder: Path, seed: int = 0) -> Path:
    """A dense layer, then three with softmax scores, groups chosen by their best expert, two shared experts."""
    config = {
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "topk_method": "group_limited_greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
    }
    return _write(folder, seed, "deepseek_v2", {**DEEPSEEK, **config})


def deepseek_v3(folder: Path, seed: int = 0) -> Path:
    """A dense layer, then three with sigmoid scores, a correction to choose by, and one shared expert."""
    config = {
        "q_lora_rank": 32,
        "n_shared_experts": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 0,
    }
    return _write(folder, seed, "deepseek_v3", {**DEEPSEEK, **config})
