# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints with random weights, in the layouts of the models whose experts vLLM places.

Each public function writes one checkpoint (config.json, model.safetensors, a tokenizer) into a folder and
returns that folder. The tensors are written by name, since that is what vLLM reads: nothing depends on how a
version of transformers names or fuses them. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

if TYPE_CHECKING:
    from pathlib import Path

# Multiples of 32, halved too: vLLM's CPU experts want that, also when two ranks share each expert.
HIDDEN, INTERMEDIATE, EXPERT_INTERMEDIATE = 64, 128, 64
# A head size that vLLM's CPU attention has a kernel for.
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
# vLLM's CPU kernel for MLA is compiled for 512 + 64 only. Without MLA (VLLM_MLA_DISABLE=1) a head has
# 32 + 64 = 96 values, which its CPU attention has a kernel for.
KV_RANK, ROPE_DIM, NOPE_DIM, V_DIM = 512, 64, 32, 32
MAX_POSITIONS, ROPE_THETA = 512, 10_000.0

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
LETTERS = "etaoinshrdlu"
MLP_NAMES = ("gate_proj", "up_proj", "down_proj")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """256 tokens of plain text, so that what is generated stays readable and decodes without loss."""
    characters = ["\n", *map(chr, range(32, 127))]
    merges = [(first, second) for first in LETTERS for second in f"{LETTERS} "]
    tokens = [*SPECIAL, *characters, *(first + second for first, second in merges)]
    return {token: index for index, token in enumerate(tokens)}, merges


VOCABULARY, MERGES = _vocabulary()


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    # transformers refuses a file that does not say what wrote it.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(BPE(vocab=VOCABULARY, merges=MERGES, unk_token="<unk>"))  # noqa: S106
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    _json(
        folder / "tokenizer_config.json",
        {
            **names,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


class _Weights:
    """Random tensors by name. Their spread keeps activations near one, whatever a layer's width."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, torch.Tensor] = {}

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator)

    def linear(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        self.tensors[f"{name}.weight"] = self.normal(rows, columns) * (gain / math.sqrt(columns))

    def norm(self, name: str, size: int = HIDDEN) -> None:
        self.tensors[f"{name}.weight"] = torch.ones(size)

    def ends(self) -> None:
        # Small beside what layers add: the experts, not the last token alone, decide the next one.
        self.tensors["model.embed_tokens.weight"] = self.normal(len(VOCABULARY), HIDDEN) / 2
        self.norm("model.norm")
        self.linear("lm_head", len(VOCABULARY), HIDDEN, gain=4)
        # A special token is never the most likely one, so that no generation ends early.
        self.tensors["lm_head.weight"][: len(SPECIAL)] = 0

    def attention(self, prefix: str, *, head_norms: bool) -> None:
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            self.linear(f"{prefix}.{name}_proj", heads * HEAD_DIM, HIDDEN)
        self.linear(f"{prefix}.o_proj", HIDDEN, HEADS * HEAD_DIM)
        if head_norms:
            self.norm(f"{prefix}.q_norm", HEAD_DIM)
            self.norm(f"{prefix}.k_norm", HEAD_DIM)

    def latent_attention(self, prefix: str, q_rank: int | None) -> None:
        rows = HEADS * (NOPE_DIM + ROPE_DIM)
        if q_rank is None:
            self.linear(f"{prefix}.q_proj", rows, HIDDEN)
        else:
            self.linear(f"{prefix}.q_a_proj", q_rank, HIDDEN)
            self.norm(f"{prefix}.q_a_layernorm", q_rank)
            self.linear(f"{prefix}.q_b_proj", rows, q_rank)
        self.linear(f"{prefix}.kv_a_proj_with_mqa", KV_RANK + ROPE_DIM, HIDDEN)
        self.norm(f"{prefix}.kv_a_layernorm", KV_RANK)
        self.linear(f"{prefix}.kv_b_proj", HEADS * (NOPE_DIM + V_DIM), KV_RANK)
        self.linear(f"{prefix}.o_proj", HIDDEN, HEADS * V_DIM)

    def mlp(self, prefix: str, width: int, names: tuple[str, str, str] = MLP_NAMES) -> None:
        gate, up, down = names
        self.linear(f"{prefix}.{gate}", width, HIDDEN, gain=1.5)
        self.linear(f"{prefix}.{up}", width, HIDDEN, gain=1.5)
        self.linear(f"{prefix}.{down}", HIDDEN, width, gain=1.5)

    def router(self, name: str, experts: int, gain: float = 4.0) -> None:
        """Rows of unequal length: an expert with a long one is chosen often, with a short one seldom."""
        self.linear(name, experts, HIDDEN, gain)
        lengths = torch.linspace(0.25, 1.5, experts)
        order = torch.randperm(experts, generator=self._generator)
        self.tensors[f"{name}.weight"] *= lengths[order, None]

    def experts(self, prefix: str, count: int, names: tuple[str, str, str] = MLP_NAMES) -> None:
        for expert in range(count):
            self.mlp(f"{prefix}.experts.{expert}", EXPERT_INTERMEDIATE, names)

    def layer(self, index: int) -> str:
        """The prefix of a layer, whose two norms every model has."""
        prefix = f"model.layers.{index}"
        self.norm(f"{prefix}.input_layernorm")
        self.norm(f"{prefix}.post_attention_layernorm")
        return prefix


def _write(folder: Path, weights: _Weights, architecture: str, layers: int, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights.ends()
    _save(folder, weights.tensors)
    _write_tokenizer(folder)
    common = {
        "architectures": [architecture],
        "vocab_size": len(VOCABULARY),
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "pad_token_id": VOCABULARY["<pad>"],
        "bos_token_id": VOCABULARY["<s>"],
        "eos_token_id": VOCABULARY["</s>"],
        # Before and since transformers 5: `torch_dtype`, `rope_theta`; `dtype`, `rope_parameters`.
        "torch_dtype": "float32",
        "dtype": "float32",
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
    }
    _json(folder / "config.json", {**common, **config})
    return folder


def _expert_counts(experts: int, top_k: int) -> dict[str, int]:
    """What versions of transformers and vLLM call these numbers."""
    return {"num_experts": experts, "num_local_experts": experts, "num_experts_per_tok": top_k}


def _qwen3_moe(folder: Path, seed: int, experts: int, top_k: int, dense: tuple[int, ...] = ()) -> Path:
    weights, layers = _Weights(seed), 4
    for index in range(layers):
        prefix = weights.layer(index)
        weights.attention(f"{prefix}.self_attn", head_norms=True)
        if index in dense:
            weights.mlp(f"{prefix}.mlp", INTERMEDIATE)
        else:
            weights.router(f"{prefix}.mlp.gate", experts)
            weights.experts(f"{prefix}.mlp", experts)
    config = {
        "model_type": "qwen3_moe",
        **_expert_counts(experts, top_k),
        "moe_intermediate_size": EXPERT_INTERMEDIATE,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(dense),
    }
    return _write(folder, weights, "Qwen3MoeForCausalLM", layers, config)


def qwen3_moe(folder: Path, seed: int = 0) -> Path:
    """Four layers of 16 experts, 4 for each token."""
    return _qwen3_moe(folder, seed, experts=16, top_k=4)


def qwen3_moe_dense_first(folder: Path, seed: int = 0) -> Path:
    """A dense layer, then three of 8 experts, 2 for each token."""
    return _qwen3_moe(folder, seed, experts=8, top_k=2, dense=(0,))


def qwen3_moe_w8a8(folder: Path, seed: int = 0) -> Path:
    """`qwen3_moe` of the same seed with experts in int8 (compressed-tensors), the rest in bfloat16.

    Each weight has a scale for each output channel; each token gets its scale as the model runs.
    """
    qwen3_moe(folder, seed)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if ".experts." in name:
            # Quantised by the scale as it is stored, so that rounding it costs nothing.
            scale = (tensor.abs().amax(dim=1, keepdim=True) / 127).to(torch.bfloat16)
            tensors[name] = (tensor / scale.float()).round().clamp(-127, 127).to(torch.int8)
            tensors[f"{name}_scale"] = scale
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    _save(folder, tensors)
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype"] = config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**int8, "strategy": "channel", "dynamic": False},
                "input_activations": {**int8, "strategy": "token", "dynamic": True},
            }
        },
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
    }
    _json(folder / "config.json", config)
    return folder


def qwen3_dense(folder: Path, seed: int = 0) -> Path:
    """Three layers without experts."""
    weights, layers = _Weights(seed), 3
    for index in range(layers):
        prefix = weights.layer(index)
        weights.attention(f"{prefix}.self_attn", head_norms=True)
        weights.mlp(f"{prefix}.mlp", INTERMEDIATE)
    return _write(folder, weights, "Qwen3ForCausalLM", layers, {"model_type": "qwen3"})


def mixtral(folder: Path, seed: int = 0) -> Path:
    """Three layers of 8 experts, 2 for each token."""
    weights, layers, experts = _Weights(seed), 3, 8
    for index in range(layers):
        prefix = weights.layer(index)
        weights.attention(f"{prefix}.self_attn", head_norms=False)
        weights.router(f"{prefix}.block_sparse_moe.gate", experts)
        weights.experts(f"{prefix}.block_sparse_moe", experts, names=("w1", "w3", "w2"))
    config = {
        "model_type": "mixtral",
        **_expert_counts(experts, top_k=2),
        # The width of an expert: no layer is dense.
        "intermediate_size": EXPERT_INTERMEDIATE,
        "sliding_window": None,
    }
    return _write(folder, weights, "MixtralForCausalLM", layers, config)


def _deepseek(folder: Path, seed: int, architecture: str, config: dict[str, Any]) -> Path:
    """MLA, a dense layer, then three of 16 experts in 4 groups, 4 of 2 groups for each token."""
    weights, layers, experts = _Weights(seed), 4, 16
    corrected = config["topk_method"] == "noaux_tc"
    for index in range(layers):
        prefix = weights.layer(index)
        weights.latent_attention(f"{prefix}.self_attn", config["q_lora_rank"])
        if index == 0:
            weights.mlp(f"{prefix}.mlp", INTERMEDIATE)
            continue
        # Sigmoids of large logits would all be close to one.
        weights.router(f"{prefix}.mlp.gate", experts, gain=2.0 if corrected else 4.0)
        if corrected:
            weights.tensors[f"{prefix}.mlp.gate.e_score_correction_bias"] = weights.normal(experts) / 5
        weights.experts(f"{prefix}.mlp", experts)
        weights.mlp(f"{prefix}.mlp.shared_experts", config["n_shared_experts"] * EXPERT_INTERMEDIATE)
    common = {
        "num_key_value_heads": HEADS,
        "head_dim": ROPE_DIM,
        # Released models scale positions too. Without it vLLM 0.32 computes wrong queries on a CPU when eager:
        # its kernel takes the heads of MLA's queries for tokens, and reads positions past the end.
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": ROPE_THETA,
            "factor": 2.0,
            "original_max_position_embeddings": MAX_POSITIONS // 2,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "kv_lora_rank": KV_RANK,
        "qk_rope_head_dim": ROPE_DIM,
        "qk_nope_head_dim": NOPE_DIM,
        "v_head_dim": V_DIM,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "moe_intermediate_size": EXPERT_INTERMEDIATE,
        "n_routed_experts": experts,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
    }
    return _write(folder, weights, architecture, layers, {**common, **config})


def deepseek_v2(folder: Path, seed: int = 0) -> Path:
    """Softmax scores, the best groups by their best expert, two shared experts."""
    config = {
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "topk_method": "group_limited_greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
    }
    return _deepseek(folder, seed, "DeepseekV2ForCausalLM", config)


def deepseek_v3(folder: Path, seed: int = 0) -> Path:
    """Sigmoid scores chosen by a corrected score, the best groups by their best two, one shared expert."""
    config = {
        "model_type": "deepseek_v3",
        "q_lora_rank": 32,
        "n_shared_experts": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 0,
    }
    return _deepseek(folder, seed, "DeepseekV3ForCausalLM", config)
