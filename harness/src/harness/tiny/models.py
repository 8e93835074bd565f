# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The two tiny models: what they are made of, and how their weights start."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from harness.tiny.tokenizer import END_ID, PAD_ID

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Kind(str, Enum):
    """A tiny model.

    `qwen3-moe` is a Qwen3-MoE: softmax scores, experts in every layer. `deepseek` routes as DeepSeek-V3 does
    (sigmoid scores, groups, a correction to choose by, a shared expert, a dense first layer) in GLM-4.5's
    architecture, whose ordinary attention is small and runs everywhere.
    """

    qwen3_moe = "qwen3-moe"
    deepseek = "deepseek"


MAX_LENGTH = 2048
EXPERTS, TOP_K = 16, 4
# All widths are multiples of 32, also when two ranks share them: vLLM's CPU kernels want that.
COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_experts_per_tok": TOP_K,
    "norm_topk_prob": True,
    "max_position_embeddings": MAX_LENGTH,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "pad_token_id": PAD_ID,
    "eos_token_id": END_ID,
    "bos_token_id": None,
    # Loads are counted while training; nothing evens them out unless the model says so.
    "output_router_logits": False,
}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
SPECIFIC: dict[Kind, dict[str, Any]] = {
    Kind.qwen3_moe: {
        "num_experts": EXPERTS,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.0,
        "rope_parameters": ROPE,
    },
    Kind.deepseek: {
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 0,
        "use_qk_norm": True,
        "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5},
    },
}
MODEL_TYPE = {Kind.qwen3_moe: "qwen3_moe", Kind.deepseek: "glm4_moe"}
# Names that other versions of transformers and vLLM read.
ALSO: dict[Kind, dict[str, Any]] = {
    Kind.qwen3_moe: {"num_experts": EXPERTS, "num_local_experts": EXPERTS},
    Kind.deepseek: {
        "n_routed_experts": EXPERTS,
        "num_experts": EXPERTS,
        "num_local_experts": EXPERTS,
        "partial_rotary_factor": 0.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
}


def build(kind: Kind, vocabulary: int, seed: int) -> PreTrainedModel:
    """Build a model with fresh weights in float32; the same seed gives the same weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        MODEL_TYPE[kind], vocab_size=vocabulary, dtype="float32", **COMMON, **SPECIFIC[kind]
    )
    # Sorted by expert and multiplied in groups: much the fastest on a CPU.
    model = AutoModelForCausalLM.from_config(config, experts_implementation="grouped_mm")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # In the order of their names, so that a seed's weights do not depend on how the model is written.
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() == 1:
                weight.fill_(1.0)
            elif "embed_tokens" in name:
                weight.normal_(0, 0.5, generator=generator)
            elif name.startswith("lm_head"):
                weight.zero_()
            else:
                # The last axis is what a matrix takes in, also where matrices of all experts are stacked.
                weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
    return model


def routers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the routers of the MoE layers, in order; each returns (logits, weights, experts [tokens, top-k])."""
    return [module for name, module in model.named_modules() if name.endswith("mlp.gate")]


def config_json(model: PreTrainedModel, kind: Kind) -> dict[str, Any]:
    """Return the content of `config.json`, with the names that other versions read."""
    written = model.config.to_diff_dict()
    written.pop("transformers_version", None)
    return {
        **written,
        "architectures": [type(model).__name__],
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "rope_theta": ROPE["rope_theta"],
        **{name: COMMON[name] for name in ("head_dim", "norm_topk_prob", "tie_word_embeddings")},
        **SPECIFIC[kind],
        **ALSO[kind],
    }
