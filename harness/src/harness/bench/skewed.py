# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with a skewed router, to time what a planned map gains: random weights, the same on every machine."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expert_maps.files import write_text

if TYPE_CHECKING:
    from pathlib import Path

    import torch

VOCABULARY = 512
# By how much the part of a router's score that each token has of its own varies.
_OWN = 1.0


@dataclass(frozen=True)
class Shape:
    """How large the model is, and how skewed.

    Attributes:
        layers: L.
        hidden: width of a token's vector.
        inner: width of an expert.
        heads: of attention, 64 wide; keys and values have half as many.
        experts: E.
        top_k: experts a token.
        half: by how much the scores of the first half of the experts, which rank 0 of two has by default, exceed the
            others'.
        spread: by how much experts' scores vary beside.
        first: by how much the first expert's scores exceed those of the others; 0 for one as the others are.
    """

    layers: int = 4
    hidden: int = 512
    inner: int = 256
    heads: int = 8
    experts: int = 32
    top_k: int = 4
    half: float = 1.0
    spread: float = 0.5
    first: float = 0.0


USUAL = Shape()
_HEAD = 64


def config(shape: Shape = USUAL) -> dict[str, Any]:
    """Return the model's configuration, as transformers and vLLM read it."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "float32",
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "moe_intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads // 2,
        "head_dim": _HEAD,
        "num_experts": shape.experts,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def weights(shape: Shape = USUAL) -> dict[str, torch.Tensor]:
    """Return the model's weights, float32.

    Every token's vector has the same part, along which each expert's row of the router has a height of its own: that
    makes some experts popular. The rest of both is random, so that tokens still choose differently.
    """
    import torch

    draw = torch.Generator().manual_seed(0)

    def normal(*sizes: int, scale: float = 0.02) -> torch.Tensor:
        return torch.randn(*sizes, generator=draw) * scale

    ones = torch.ones(shape.hidden)
    found = {
        # Half of a vector's square length is the common part, so that after the norm it has the height 1 / √2.
        "model.embed_tokens.weight": ones + normal(VOCABULARY, shape.hidden, scale=1.0),
        "model.norm.weight": ones,
        "lm_head.weight": normal(VOCABULARY, shape.hidden),
    }
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        height = normal(shape.experts, scale=shape.spread)
        height[: shape.experts // 2] += shape.half
        if shape.first:
            height[0] = height.max() + shape.first
        router = height[:, None] * ones * math.sqrt(2) / shape.hidden
        own = normal(shape.experts, shape.hidden, scale=_OWN * math.sqrt(2 / shape.hidden))
        found |= {
            f"{name}.mlp.gate.weight": router + own,
            f"{name}.input_layernorm.weight": ones.clone(),
            f"{name}.post_attention_layernorm.weight": ones.clone(),
            f"{name}.self_attn.q_norm.weight": torch.ones(_HEAD),
            f"{name}.self_attn.k_norm.weight": torch.ones(_HEAD),
            f"{name}.self_attn.q_proj.weight": normal(shape.heads * _HEAD, shape.hidden),
            f"{name}.self_attn.k_proj.weight": normal(shape.heads // 2 * _HEAD, shape.hidden),
            f"{name}.self_attn.v_proj.weight": normal(shape.heads // 2 * _HEAD, shape.hidden),
            f"{name}.self_attn.o_proj.weight": normal(shape.hidden, shape.heads * _HEAD),
        }
        for expert in range(shape.experts):
            part = f"{name}.mlp.experts.{expert}"
            found[f"{part}.gate_proj.weight"] = normal(shape.inner, shape.hidden)
            found[f"{part}.up_proj.weight"] = normal(shape.inner, shape.hidden)
            found[f"{part}.down_proj.weight"] = normal(shape.hidden, shape.inner)
    return found


def write_model(folder: Path, shape: Shape = USUAL) -> None:
    """Write the checkpoint, 220 MB of the usual shape; it has no tokenizer, since prompts are ids.

    Raises:
        FormatError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(config(shape), indent=2) + "\n")
    save_file(weights(shape), folder / "model.safetensors", metadata={"format": "pt"})


__all__ = ["USUAL", "VOCABULARY", "Shape", "config", "weights", "write_model"]
