# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What was published of the models that are known by name.

Each is counted by the rules from the keys of its published configuration that matter. They were checked against
transformers 5.19.0, whose classes have the values of one published model as defaults (marked T), and against copies of
the published ``config.json`` in public repositories (P). A name says nothing about quantisation that its publisher
did not choose: of ``…-AWQ`` the bytes of an expert are not known.
"""

from __future__ import annotations

from typing import TypeAlias

_Keys: TypeAlias = "dict[str, object]"

_FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
_MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}
_BF16 = {"torch_dtype": "bfloat16"}


def _deepseek(model_type: str, architecture: str, **keys: object) -> _Keys:
    common: _Keys = {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": 7168,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "num_nextn_predict_layers": 1,
    }
    return {**common, **_FP8, **keys}


def _qwen3(layers: int, experts: int, hidden: int, width: int, **keys: object) -> _Keys:
    common: _Keys = {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": hidden,
        "moe_intermediate_size": width,
        "num_hidden_layers": layers,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return {**common, **_BF16, **keys}


def _plain(
    model_type: str, architecture: str, layers: int, experts: int, top_k: int, **keys: object
) -> _Keys:
    """A model with experts of the width intermediate_size in every layer."""
    common: _Keys = {
        "model_type": model_type,
        "architectures": [architecture],
        "num_hidden_layers": layers,
        "num_local_experts": experts,
        "num_experts_per_tok": top_k,
    }
    return {**common, **_BF16, **keys}


def _glm(layers: int, dense: int, experts: int, hidden: int, width: int, **keys: object) -> _Keys:
    common: _Keys = {
        "model_type": "glm4_moe",
        "architectures": ["Glm4MoeForCausalLM"],
        "hidden_size": hidden,
        "moe_intermediate_size": width,
        "num_hidden_layers": layers,
        "first_k_dense_replace": dense,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 1,
        "num_nextn_predict_layers": 1,
    }
    return {**common, **_BF16, **keys}


_V3 = _deepseek("deepseek_v3", "DeepseekV3ForCausalLM")
_V2 = {
    **_BF16,
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
}
_LLAMA4 = {"hidden_size": 5120, "intermediate_size": 8192}
_GPT_OSS = {"hidden_size": 2880, "intermediate_size": 2880}

CONFIGS: dict[str, _Keys] = {
    "dbrx": {  # P
        **_BF16,
        "model_type": "dbrx",
        "architectures": ["DbrxForCausalLM"],
        "d_model": 6144,
        "n_layers": 40,
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    },
    "deepseek-r1": _V3,  # T
    "deepseek-v2": {  # P
        **_V2,
        "hidden_size": 5120,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 60,
        "n_routed_experts": 160,
        "n_group": 8,
    },
    "deepseek-v2-lite": {  # P
        **_V2,
        "hidden_size": 2048,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "n_routed_experts": 64,
        "n_group": 1,
    },
    "deepseek-v3": _V3,  # T
    "deepseek-v3.1": _V3,  # T
    "deepseek-v3.2": _deepseek("deepseek_v32", "DeepseekV32ForCausalLM"),  # T
    "dots.llm1": {  # P
        **_BF16,
        "model_type": "dots1",
        "architectures": ["Dots1ForCausalLM"],
        "hidden_size": 4096,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 62,
        "first_k_dense_replace": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
    },
    "ernie-4.5-21b-a3b": {  # T
        **_BF16,
        "model_type": "ernie4_5_moe",
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "hidden_size": 2560,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 28,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_k": 6,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 27,
        "moe_layer_interval": 1,
    },
    "ernie-4.5-300b-a47b": {  # P
        **_BF16,
        "model_type": "ernie4_5_moe",
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "hidden_size": 8192,
        "moe_intermediate_size": 3584,
        "num_hidden_layers": 54,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 0,
        "moe_k": 8,
        "moe_layer_start_index": 3,
        "moe_layer_end_index": 53,
        "moe_layer_interval": 1,
    },
    "glm-4.5": _glm(92, 3, 160, 5120, 1536),  # P
    "glm-4.5-air": _glm(46, 1, 128, 4096, 1408),  # T
    "glm-4.6": _glm(92, 3, 160, 5120, 1536),  # P
    "glm-4.7": _glm(92, 3, 160, 5120, 1536),  # P
    "gpt-oss-120b": _plain("gpt_oss", "GptOssForCausalLM", 36, 128, 4, **_GPT_OSS, **_MXFP4),  # T
    "gpt-oss-20b": _plain("gpt_oss", "GptOssForCausalLM", 24, 32, 4, **_GPT_OSS, **_MXFP4),  # P
    "hunyuan-a13b": {  # P
        **_BF16,
        "model_type": "hunyuan_v1_moe",
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "hidden_size": 4096,
        "moe_intermediate_size": [3072] * 32,
        "num_hidden_layers": 32,
        "num_experts": 64,
        "num_shared_expert": [1] * 32,
        "moe_topk": [8] * 32,
    },
    "jamba-v0.1": {  # T
        **_BF16,
        "model_type": "jamba",
        "architectures": ["JambaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "kimi-k2": _deepseek(  # P
        "kimi_k2",
        "DeepseekV3ForCausalLM",
        n_routed_experts=384,
        first_k_dense_replace=1,
        n_group=1,
        num_nextn_predict_layers=0,
    ),
    "kimi-linear-48b-a3b": {  # T
        **_BF16,
        "model_type": "kimi_linear",
        "architectures": ["KimiLinearForCausalLM"],
        "hidden_size": 2304,
        "moe_intermediate_size": 1024,
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "num_experts": 256,
        "num_shared_experts": 1,
        "num_experts_per_token": 8,
        "num_expert_group": 1,
    },
    "llama-4-maverick": _plain(  # P
        "llama4_text", "Llama4ForConditionalGeneration", 48, 128, 1, **_LLAMA4, interleave_moe_layer_step=2
    ),
    "llama-4-scout": _plain(  # T
        "llama4_text", "Llama4ForConditionalGeneration", 48, 16, 1, **_LLAMA4, interleave_moe_layer_step=1
    ),
    "longcat-flash": {  # T
        **_BF16,
        "model_type": "longcat_flash",
        "architectures": ["LongcatFlashForCausalLM"],
        "hidden_size": 6144,
        "expert_ffn_hidden_size": 2048,
        "num_layers": 28,
        "n_routed_experts": 512,
        "zero_expert_num": 256,
        "moe_topk": 12,
    },
    "mimo-v2-flash": {  # T
        **_FP8,
        "model_type": "mimo_v2_flash",
        "architectures": ["MiMoV2FlashForCausalLM"],
        "hidden_size": 4096,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 48,
        "moe_layer_freq": [0] + [1] * 47,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_group": 1,
    },
    "minimax-m2": _plain(  # T, P
        "minimax_m2", "MiniMaxM2ForCausalLM", 62, 256, 8, hidden_size=3072, intermediate_size=1536, num_mtp_modules=3, **_FP8
    ),
    "mixtral-8x22b": _plain(  # P
        "mixtral", "MixtralForCausalLM", 56, 8, 2, hidden_size=6144, intermediate_size=16384
    ),
    "mixtral-8x7b": _plain(  # T
        "mixtral", "MixtralForCausalLM", 32, 8, 2, hidden_size=4096, intermediate_size=14336
    ),
    "olmoe-1b-7b": _plain("olmoe", "OlmoeForCausalLM", 16, 64, 8, hidden_size=2048, intermediate_size=1024),  # P
    "phi-3.5-moe": _plain("phimoe", "PhiMoEForCausalLM", 32, 16, 2, hidden_size=4096, intermediate_size=6400),  # T
    "qwen1.5-moe-a2.7b": _qwen3(  # T
        24, 60, 2048, 1408, model_type="qwen2_moe", architectures=["Qwen2MoeForCausalLM"],
        num_experts_per_tok=4, shared_expert_intermediate_size=5632,
    ),
    "qwen3-235b-a22b": _qwen3(94, 128, 4096, 1536),  # P
    "qwen3-30b-a3b": _qwen3(48, 128, 2048, 768),  # P
    "qwen3-coder-480b-a35b": _qwen3(62, 160, 6144, 2560),  # P
    "qwen3-next-80b-a3b": _qwen3(  # T
        48, 512, 2048, 512, model_type="qwen3_next", architectures=["Qwen3NextForCausalLM"],
        num_experts_per_tok=10, shared_expert_intermediate_size=512,
    ),
    "step-3.5-flash": {  # T, P
        **_BF16,
        "model_type": "step3p5",
        "architectures": ["Step3p5ForCausalLM"],
        "hidden_size": 4096,
        "moe_intermediate_size": 1280,
        "num_hidden_layers": 45,
        "moe_num_experts": 288,
        "moe_top_k": 8,
        "share_expert_dim": 1280,
        "moe_layers_enum": ",".join(map(str, range(3, 45))),
        "num_nextn_predict_layers": 3,
    },
}  # fmt: skip

# Short names that people use for one of several sizes.
ALIASES = {
    "llama-4-maverick-17b-128e": "llama-4-maverick",
    "llama-4-scout-17b-16e": "llama-4-scout",
    "qwen3-235b": "qwen3-235b-a22b",
    "qwen3-30b": "qwen3-30b-a3b",
    "qwen3-coder-30b-a3b": "qwen3-30b-a3b",
    "qwen3-coder-480b": "qwen3-coder-480b-a35b",
    "qwen3-next-80b": "qwen3-next-80b-a3b",
    "ernie-4.5-300b": "ernie-4.5-300b-a47b",
    "ernie-4.5-21b": "ernie-4.5-21b-a3b",
    "olmoe-1b-7b-0924": "olmoe-1b-7b",
    "kimi-linear-48b": "kimi-linear-48b-a3b",
}
