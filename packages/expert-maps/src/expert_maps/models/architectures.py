# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What an architecture says where its configuration does not: tables of facts.

Sources: transformers 5.19.0, ``models/*/configuration_*.py``; vLLM 0.32.0, ``model_executor/models`` and ``models``.
"""

from __future__ import annotations

DEFAULTS: dict[str, dict[str, int]] = {
    "afmoe": {"num_dense_layers": 1},
    "axk1": {"first_k_dense_replace": 1},
    "axk2": {"first_k_dense_replace": 1},
    "deepseek_v3": {"first_k_dense_replace": 3},
    "deepseek_v32": {"first_k_dense_replace": 3},
    "ernie4_5_moe": {"moe_layer_start_index": 1},
    "exaone_moe": {"first_k_dense_replace": 1},
    "glm4_moe": {"first_k_dense_replace": 1},
    "glm4_moe_lite": {"first_k_dense_replace": 1},
    "glm4v_moe": {"first_k_dense_replace": 1},
    "glm4v_moe_text": {"first_k_dense_replace": 1},
    "glm5_next_text": {"first_k_dense_replace": 3},
    "glm_moe_dsa": {"first_k_dense_replace": 3},
    "hy_v3": {"first_k_dense_replace": 1},
    "hy_v4": {"first_k_dense_replace": 1},
    "jamba": {"expert_layer_period": 2, "expert_layer_offset": 1},
    "laguna": {"first_k_dense_replace": 1},
    "lfm2_moe": {"num_dense_layers": 2},
    "mimo_v2_flash": {"first_k_dense_replace": 1},
    "param2moe": {"first_k_dense_replace": 1},
    "sarvam_mla": {"first_k_dense_replace": 1},
    "sarvam_moe": {"first_k_dense_replace": 1},
}
"""The keys that a model type's own class fills in where they are absent: its dense layers come first."""

NOT_WITHOUT: dict[str, str] = {
    "arctic": "moe_layer_frequency",
    "bailing": "first_k_dense_replace",
    "deepseek_ocr2": "first_k_dense_replace",
    "kimi": "first_k_dense_replace",
    "minimax_m3": "moe_layer_freq",
    "nemotron_h": "hybrid_override_pattern",
    "openpangu": "num_dense_layers",
    "pangu_ultra": "first_k_dense_replace",
    "step3": "moe_layers_enum",
}
"""Starts of model types that have dense layers and no default that vLLM and transformers share."""

ALL_LAYERS = frozenset(
    {
        "aria_text",
        "cohere2_moe",
        "dbrx",
        "deepseek_v2",
        "deepseek_v4",
        "dots1",
        "flex_olmo",
        "gemma4_text",
        "gpt_oss",
        "granitemoe",
        "granitemoe_swa",
        "granitemoehybrid",
        "granitemoeshared",
        "grok-1",
        "hunyuan_v1_moe",
        "jetmoe",
        "mellum",
        "minimax",
        "minimax_m1",
        "minimax_m2",
        "minimax_text_01",
        "mistral4",
        "mixtral",
        "olmoe",
        "openai_privacy_filter",
        "phimoe",
        "qwen2_moe",
        "qwen3_5_moe_text",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_omni_moe_text",
        "qwen3_vl_moe_text",
        "qwen4_exp_text",
        "solar_open",
        "zaya",
    }
)
"""Model types that have experts in every layer where no key says otherwise."""

STATED = frozenset(
    {
        "ernie4_5_moe_vl",
        "ernie4_5_vl_moe",
        "ernie4_5_vl_moe_text",
        "glm5_next",
        "grove_moe",
        "inkling_mm_model",
        "inkling_text",
        "interns1_pro",
        "llama4",
        "llama4_text",
        "moondream3",
        "nomic_bert",
        "qwen3_omni_moe_talker_text",
    }
)
"""Other model types whose keys are known: what they state beside a rule's key says nothing about experts."""

SILENT_KEYS = {
    "silent": frozenset({"moe_every_n_layer", "moe_layer_offset", "first_last_k_dense_replace"}),
    "beside": frozenset({"moe_layers_enum", "is_moe_layer", "mlp_layer_types"}),
}
"""Keys that say nothing beside a list of the layers: Step-3.5's (vLLM's class takes them, no code reads them) and
K-EXAONE's; without such a list they are as any unknown key."""
