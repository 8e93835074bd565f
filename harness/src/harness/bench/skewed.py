# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with a skewed router, to time what a planned map gains: random weights, the same on every machine."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from expert_maps.files import write_text

if TYPE_CHECKING:
    from pathlib import Path

    import torch

VOCABULARY = 512
_LAYERS, _HIDDEN, _INNER, _HEADS, _HEAD = 4, 512, 256, 8, 64
EXPERTS, TOP_K = 32, 4
# By how much the scores of the first half of the experts, which rank 0 of two has by default, exceed the others'.
_HALF, _SPREAD, _OWN = 1.0, 0.5, 1.0


def config() -> dict[str, Any]:
    """Return the model's configuration, as transformers and vLLM read it."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "float32",
        "vocab_size": VOCABULARY,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "moe_intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS // 2,
        "head_dim": _HEAD,
        "num_experts": EXPERTS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
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


def weights() -> dict[str, torch.Tensor]:
    """Return the model's weights, float32.

    Every token's vector has the same part, along which each expert's row of the router has a height of its own: that
    makes some experts popular. The rest of both is random, so that tokens still choose differently.
    """
    import torch

    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.02) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * scale

    ones = torch.ones(_HIDDEN)
    found = {
        # Half of a vector's square length is the common part, so that after the norm it has the height 1 / √2.
        "model.embed_tokens.weight": ones + normal(VOCABULARY, _HIDDEN, scale=1.0),
        "model.norm.weight": ones,
        "lm_head.weight": normal(VOCABULARY, _HIDDEN),
    }
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}"
        height = normal(EXPERTS, scale=_SPREAD)
        height[: EXPERTS // 2] += _HALF
        router = height[:, None] * ones * math.sqrt(2) / _HIDDEN
        found |= {
            f"{name}.mlp.gate.weight": router + normal(EXPERTS, _HIDDEN, scale=_OWN * math.sqrt(2 / _HIDDEN)),
            f"{name}.input_layernorm.weight": ones.clone(),
            f"{name}.post_attention_layernorm.weight": ones.clone(),
            f"{name}.self_attn.q_norm.weight": torch.ones(_HEAD),
            f"{name}.self_attn.k_norm.weight": torch.ones(_HEAD),
            f"{name}.self_attn.q_proj.weight": normal(_HEADS * _HEAD, _HIDDEN),
            f"{name}.self_attn.k_proj.weight": normal(_HEADS // 2 * _HEAD, _HIDDEN),
            f"{name}.self_attn.v_proj.weight": normal(_HEADS // 2 * _HEAD, _HIDDEN),
            f"{name}.self_attn.o_proj.weight": normal(_HIDDEN, _HEADS * _HEAD),
        }
        for expert in range(EXPERTS):
            part = f"{name}.mlp.experts.{expert}"
            found[f"{part}.gate_proj.weight"] = normal(_INNER, _HIDDEN)
            found[f"{part}.up_proj.weight"] = normal(_INNER, _HIDDEN)
            found[f"{part}.down_proj.weight"] = normal(_HIDDEN, _INNER)
    return found


def write_model(folder: Path) -> None:
    """Write the checkpoint, 220 MB; it has no tokenizer, since prompts are ids.

    Raises:
        FormatError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(config(), indent=2) + "\n")
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})


__all__ = ["EXPERTS", "TOP_K", "VOCABULARY", "config", "weights", "write_model"]
