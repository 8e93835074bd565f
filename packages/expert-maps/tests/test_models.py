# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Models: which layers are MoE, by every rule, and what is refused instead of guessed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from expert_maps import FormatError
from expert_maps.files import Source
from expert_maps.models import MODELS, counts_from_config, layers_text, model_counts
from expert_maps.models.architectures import ALL_LAYERS, DEFAULTS, NOT_WITHOUT
from expert_maps.models.keys import IRRELEVANT, is_suspect
from expert_maps.models.rules import RULES
from expert_maps.models.values import Config

if TYPE_CHECKING:
    from pathlib import Path

NEMOTRON = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"

# What it is, the keys that matter, and the MoE layers and experts that its serving code makes of them.
FIXTURES: list[tuple[str, dict[str, Any], list[int], int]] = [
    (
        "DeepSeek-V3",
        {
            "num_hidden_layers": 61,
            "n_routed_experts": 256,
            "first_k_dense_replace": 3,
            "moe_layer_freq": 1,
            "n_shared_experts": 1,
            "moe_intermediate_size": 2048,
            "router_aux_loss_coef": 0.001,
            "output_router_logits": False,
            "num_nextn_predict_layers": 1,
        },
        list(range(3, 61)),
        256,
    ),
    (
        "every second from the third on, counted from layer 0",
        {
            "num_hidden_layers": 9,
            "n_routed_experts": 4,
            "first_k_dense_replace": 3,
            "moe_layer_freq": 2,
        },
        [4, 6, 8],
        4,
    ),
    (
        "Sarvam counts from the first MoE layer",
        {
            "model_type": "sarvam_mla",
            "num_hidden_layers": 9,
            "num_experts": 4,
            "first_k_dense_replace": 3,
            "moe_layer_freq": 2,
        },
        [3, 5, 7],
        4,
    ),
    ("a list", {"num_hidden_layers": 4, "num_experts": 8, "moe_layer_freq": [0, 1, 1, 1]}, [1, 2, 3], 8),
    ("a list of its own length", {"n_routed_experts": 8, "moe_layer_freq": [0, True, 1, 0]}, [1, 2], 8),
    (
        "a list with a draft layer",
        {"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "num_experts": 8, "moe_layer_freq": [0, 1, 1, 1]},
        [1, 2],
        8,
    ),
    ("LFM2", {"num_hidden_layers": 24, "num_experts": 32, "num_dense_layers": 2}, list(range(2, 24)), 32),
    (
        "openPangu",
        {"num_hidden_layers": 61, "num_routed_experts": 256, "num_dense_layers": 3, "num_mtp_layers": 1},
        list(range(3, 61)),
        256,
    ),
    ("Inkling", {"num_hidden_layers": 5, "n_routed_experts": 8, "dense_mlp_idx": 2}, [2, 3, 4], 8),
    (
        "Hunyuan",
        {
            "num_hidden_layers": 3,
            "num_experts": [64] * 3,
            "moe_topk": [8] * 3,
            "num_shared_expert": [1] * 3,
            "moe_layer_num_skipped": 1,
        },
        [1, 2],
        64,
    ),
    ("Moondream", {"n_layers": 6, "moe": {"n_experts": 64, "start_layer": 4, "n_experts_per_tok": 8}}, [4, 5], 64),
    (
        "Mistral's own format",
        {"n_layers": 4, "moe": {"num_experts": 8, "first_k_dense_replace": 1, "route_every_n": 1}},
        [1, 2, 3],
        8,
    ),
    (
        "Llama 4 Maverick",
        {"text_config": {"num_hidden_layers": 48, "num_local_experts": 128, "interleave_moe_layer_step": 2}},
        list(range(1, 48, 2)),
        128,
    ),
    (
        "Llama 4 with a list",
        {"num_hidden_layers": 6, "num_local_experts": 16, "interleave_moe_layer_step": 1, "moe_layers": [5, 1]},
        [1, 5],
        16,
    ),
    (
        "Step-3.5",
        {
            "model_type": "step3p5",
            "num_hidden_layers": 45,
            "moe_num_experts": 288,
            "moe_layers_enum": ",".join(map(str, range(3, 48))),
            "moe_every_n_layer": 1,
            "moe_layer_offset": 0,
            "num_nextn_predict_layers": 3,
        },
        list(range(3, 45)),
        288,
    ),
    ("an enum as a list", {"num_hidden_layers": 5, "moe_num_experts": 4, "moe_layers_enum": [2, 4]}, [2, 4], 4),
    (
        "Nemotron-H",
        {"num_hidden_layers": 52, "n_routed_experts": 128, "hybrid_override_pattern": NEMOTRON},
        [layer for layer, letter in enumerate(NEMOTRON) if letter == "E"],
        128,
    ),
    (
        "Nemotron-H as transformers saves it",
        {"n_routed_experts": 8, "layers_block_type": ["mamba", "moe", "attention", "moe"]},
        [1, 3],
        8,
    ),
    (
        "kinds of MLP",
        {"num_hidden_layers": 4, "num_experts": 8, "mlp_layer_types": ["dense", "sparse", "sparse", "dense"]},
        [1, 2],
        8,
    ),
    (
        "DeepSeek-V4",
        {"num_hidden_layers": 3, "n_routed_experts": 8, "mlp_layer_types": ["hash_moe", "moe", "moe"]},
        [0, 1, 2],
        8,
    ),
    (
        "K-EXAONE",
        {
            "num_hidden_layers": 3,
            "num_experts": 128,
            "is_moe_layer": [False, True, True],
            "first_last_k_dense_replace": 1,
        },
        [1, 2],
        128,
    ),
    (
        "Jamba",
        {"num_hidden_layers": 32, "num_experts": 16, "expert_layer_period": 2, "expert_layer_offset": 1},
        list(range(1, 32, 2)),
        16,
    ),
    (
        "ERNIE 4.5",
        {
            "num_hidden_layers": 54,
            "moe_num_experts": 64,
            "moe_layer_start_index": 3,
            "moe_layer_end_index": 53,
            "moe_layer_interval": 1,
            "moe_use_aux_free": True,
        },
        list(range(3, 54)),
        64,
    ),
    (
        "ERNIE with an interval and no end",
        {
            "num_hidden_layers": 8,
            "moe_num_experts": 4,
            "moe_layer_start_index": 2,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 2,
        },
        [3, 5, 7],
        4,
    ),
    (
        "ERNIE VL: text before vision",
        {
            "model_type": "ernie4_5_moe_vl",
            "num_hidden_layers": 4,
            "moe_num_experts": [64, 32],
            "moe_layer_start_index": [1, 2],
            "moe_layer_end_index": [5, 4],
            "moe_layer_feed_fake_token": True,
        },
        [1, 2, 3],
        64,
    ),
    (
        "Qwen",
        {"num_hidden_layers": 6, "num_experts": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
        [1, 5],
        4,
    ),
    ("only dense ones listed", {"num_hidden_layers": 4, "num_experts": 16, "mlp_only_layers": [0, 2]}, [1, 3], 16),
    ("Arctic", {"num_hidden_layers": 6, "num_local_experts": 128, "moe_layer_frequency": 2}, [1, 3, 5], 128),
    ("Nomic", {"num_hidden_layers": 6, "num_experts": 8, "moe_every_n_layers": 2}, [1, 3, 5], 8),
    (
        "Puzzle",
        {
            "block_configs": [
                {"block_type": "mamba"},
                {"block_type": "moe", "n_routed_experts": 8},
                {"block_type": "moe", "n_routed_experts": 8},
            ]
        },
        [1, 2],
        8,
    ),
    (
        "LongCat: zero experts are none, a layer has two attentions",
        {
            "model_type": "longcat_flash",
            "num_layers": 28,
            "num_hidden_layers": 56,
            "n_routed_experts": 512,
            "zero_expert_num": 256,
            "moe_topk": 12,
        },
        list(range(28)),
        512,
    ),
    (
        "DBRX",
        {"model_type": "dbrx", "n_layers": 40, "d_model": 6144, "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4}},
        list(range(40)),
        16,
    ),
    ("Mixtral", {"model_type": "mixtral", "num_hidden_layers": 32, "num_local_experts": 8}, list(range(32)), 8),
    (
        "Granite hybrid: its block types say nothing of experts",
        {
            "model_type": "granitemoehybrid",
            "num_hidden_layers": 2,
            "num_local_experts": 8,
            "layer_types": ["mamba", "attention"],
        },
        [0, 1],
        8,
    ),
    (
        "Qwen3-Omni: the thinker's, not the talker's",
        {
            "thinker_config": {
                "text_config": {"num_hidden_layers": 4, "num_experts": 128, "decoder_sparse_step": 1},
                "audio_config": {"num_experts": 3, "encoder_layers": 2},
            },
            "talker_config": {"text_config": {"num_hidden_layers": 2, "num_experts": 64}},
        },
        [0, 1, 2, 3],
        128,
    ),
    (
        "both levels have experts",
        {
            "num_hidden_layers": 9,
            "num_experts": 2,
            "language_config": {"num_hidden_layers": 2, "n_routed_experts": 64, "first_k_dense_replace": 1},
            "vision_config": {"num_experts": 7},
        },
        [1],
        64,
    ),
    (
        "InternVL",
        {"llm_config": {"model_type": "qwen3_moe", "num_hidden_layers": 2, "num_experts": 8}},
        [0, 1],
        8,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "layers", "experts"), FIXTURES, ids=[fixture[0] for fixture in FIXTURES]
)
def test_moe_layers_by_each_rule(name: str, config: dict[str, Any], layers: list[int], experts: int) -> None:
    counts = counts_from_config(name, config)
    assert counts.moe_layers == tuple(layers)
    assert (counts.num_layers, counts.num_experts) == (len(layers), experts)
    assert counts.rule


def test_every_rule_has_a_fixture_and_a_source() -> None:
    flat = [
        {**config, **config.get("text_config", {}), **config.get("moe", {})} for _, config, _, _ in FIXTURES
    ]
    for rule in RULES:
        assert len(rule.source) > 8, rule.keys
        assert any(
            set(rule.keys) & ({*config, "moe_start_layer"} if "start_layer" in config else set(config))
            for config in flat
        ), rule.keys


@pytest.mark.parametrize("kind", sorted(DEFAULTS))
def test_an_absent_key_has_its_class_default(kind: str) -> None:
    config = {"model_type": kind, "num_hidden_layers": 8, "num_experts": 4}
    counts = counts_from_config("a model", config)
    expected = {"jamba": (1, 3, 5, 7)}.get(kind, tuple(range(next(iter(DEFAULTS[kind].values())), 8)))
    assert counts.moe_layers == expected
    assert f"the default of {kind}" in counts.rule
    assert not counts.is_assumed


def test_a_stated_key_or_list_is_no_default() -> None:
    config: dict[str, Any] = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "n_routed_experts": 4}
    assert counts_from_config("m", {**config, "moe_layer_freq": 1}).moe_layers == (3,)
    assert counts_from_config("m", {**config, "first_k_dense_replace": 0}).num_layers == 4
    assert counts_from_config("m", {**config, "moe_layer_freq": [1, 1, 1, 1]}).num_layers == 4


@pytest.mark.parametrize("kind", sorted(NOT_WITHOUT))
def test_models_without_a_common_default_are_not_guessed(kind: str) -> None:
    with pytest.raises(
        FormatError, match=f"cannot tell the MoE layers.*{NOT_WITHOUT[kind]} is missing.*give --layers"
    ):
        counts_from_config("m", {"model_type": kind, "num_hidden_layers": 8, "num_experts": 4})


def test_every_layer_is_known_or_assumed() -> None:
    config = {"num_hidden_layers": 2, "num_experts": 4}
    assert counts_from_config("m", config).is_assumed
    for kind in ALL_LAYERS:
        counts = counts_from_config("m", {**config, "model_type": kind})
        assert not counts.is_assumed
        assert counts.num_layers == 2


# Refused: keys that no rule knows, and values that cannot be


@pytest.mark.parametrize(
    "key",
    [
        "moe_layer_stride", "sparse_layers", "expert_layer_indices", "moe_period", "moe_offset", "dense_layers",
        "n_dense_first_layers", "moe_every_k_layers", "moe_layer_list", "moeLayers", "moe_start", "moe-end-layer",
        "sparse_step", "expert_interval", "moe_pattern", "moe_layer_mask", "num_experts_per_layer", "experts_count",
        "mixture_every", "num_sparse_encoder_layers", "encoder_sparse_step", "moe_freq", "dense_prefix_layers",
        "moe_block_ids", "moe_layer_property", "expert_placement_pattern", "moe_layer_ratio", "moe_every_n_layer", "first_last_k_dense_replace",
    ],
)  # fmt: skip
def test_an_unknown_key_of_sparsity_is_never_a_number(key: str) -> None:
    config = {"num_hidden_layers": 8, "num_experts": 4, key: 2}
    for whole in (
        config,
        {"text_config": config},
        {"text_config": {"num_hidden_layers": 8, "num_experts": 4}, key: 2},
    ):
        with pytest.raises(
            FormatError, match=rf"cannot tell the MoE layers of this model from {key} .*--layers"
        ):
            counts_from_config("m", whole)
    # Null is absent; and the caller may know better.
    assert counts_from_config("m", {**config, key: None}).num_layers == 8
    assert counts_from_config("m", config, layers=[1, 3]).moe_layers == (1, 3)


@pytest.mark.parametrize(
    "extra",
    [
        {"mlp_config": {"moe_layers": [1]}},
        {"properties": {"moe_layers": [1]}},
        {"per_layer_config": {"3": {"num_experts": 2}}},
        {"moe_config": {"every": {"moe_step": 2}}},
        {"ffn_kinds": ["mlp", "moe", "mlp", "moe", "mlp", "moe", "mlp", "moe"]},
    ],
)
def test_unknown_parts_and_lists_of_kinds_are_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="cannot tell the MoE layers of this model from"):
        counts_from_config("m", {"num_hidden_layers": 8, "num_experts": 4, **extra})


def test_keys_that_say_nothing_are_let_through() -> None:
    harmless = {
        "moe_intermediate_size": 8, "router_aux_loss_coef": 0.1, "output_router_logits": True, "moe_router_dtype": "f",
        "moe_shared_expert_intermediate_size": 8, "moe_dynamic_token_drop": 1, "sparse_attention_config": {"freq": 2},
        "activation_sparsity_pattern": [0.9], "shared_expert_gate": True, "moe_router_enable_expert_bias": True,
        "moe_k": 2, "mtp_hybrid_override_pattern": "*E", "vision_config": {"moe_layers": [1]}, "norm_expert_weight": 1,
        "quantization_config": {"ignored_layers": ["experts"]}, "moe_router_num_groups": 1, "moe_drop_tokens": False,
        "num_attention_layers": 3, "dspark_n_routed_experts": 2, "moe_router_scaling_factor": 2.5, "hidden_act": "silu",
        "layer_types": ["full_attention"] * 8, "sliding_window_pattern": "LLLG",
        "architectures": ["SomeMoeForCausalLM", "OtherMoe"], "dense_intermediate_size": 4, "expert_capacity": 4,
        "prefix_dense_intermediate_size": 4, "share_expert_dim": 0, "moe_routed_scaling_factor": 1.0, "moe_latent_size": 4,
        "mtp_layers_block_type": ["full_attention", "moe"], "moe_experts_per_token": 2,
        "rms_norm_eps_moe_gate": 1e-6, "moe_renormalize": True, "enable_moe_fp32_combine": True, "ep_size": 1,
    }  # fmt: skip
    assert counts_from_config("m", {"num_hidden_layers": 8, "num_experts": 4, **harmless}).num_layers == 8
    assert all(is_suspect(key) for key in IRRELEVANT), "a key that no rule suspects needs no entry"


# Keys that name no experts and may tell which layers have some, each with a value that does.
TELLING: list[dict[str, Any]] = [
    {"layer_pattern": "MEMEMEME"},
    {"layer_pattern": ["a", "b"] * 4},
    {"block_pattern": ["dense", "sparse"]},
    {"mlp_layers": [1, 3, 5]},
    {"mlp_layers": 3},
    {"mlp_layers": "1,3,5"},
    {"ffn_layers": {"1": "a"}},
    {"layer_types": ["dense", "sparse"] * 4},
    {"layer_types": ["attention", "mlp"] * 4},
    {"layer_types": ["moe", "shared_moe"] * 4},
    {"layer_types": ["A", "B"] * 4},
    {"layer_types": [0, 1] * 4},
    {"layers_block_type": ["mamba", "expert_mlp"] * 4},
    {"block_types": ["X", "Y"] * 4},
    {"hybrid_pattern": "ABABABAB"},
    {"hybrid_layer_pattern": [0, 1, 0, 1, 0, 1, 0, 1]},
    {"arch": "DMDMDMDM"},
    {"interval": 2},
    {"ffn_interval": 2},
    {"block_freq": 2},
    {"ff_every": 2},
    {"alternating": True},
    {"layerSchedule": "2*A,6*B"},
    {"first_mlp_layers": 1},
    {"blocks": [{"a": 1}, {"a": 2}] * 4},
    {"mlp_settings": {"layers": [1, 2]}},
    {"per_layer": {"1": {"kind": "x"}}},
    {"special": [1, 3, 6]},
    {"kinds": ["x", "y"] * 4},
]


@pytest.mark.parametrize(
    "extra", TELLING, ids=lambda extra: f"{next(iter(extra))}={next(iter(extra.values()))}"[:40]
)
def test_of_an_unknown_architecture_whatever_may_tell_layers_apart_is_refused(extra: dict[str, Any]) -> None:
    config = {"num_hidden_layers": 8, "num_experts": 4, **extra}
    # Also where a step of 1, or dense layers at the start, say something; and in a model's outer configuration.
    for whole in (
        config,
        {**config, "model_type": "new_moe", "decoder_sparse_step": 1},
        {**config, "first_k_dense_replace": 1},
        {"text_config": config},
    ):
        with pytest.raises(
            FormatError, match=r"cannot tell the MoE layers of this model from .*; give --layers"
        ):
            counts_from_config("m", whole)
    assert counts_from_config("m", config, layers=[1, 3]).moe_layers == (1, 3)
    # A list of the layers leaves nothing open, and of a known architecture its other keys are known.
    if not {"layer_types", "layers_block_type"} & extra.keys() and "sparse" not in str(extra):
        listed = {**config, "moe_layer_freq": [0, 1] * 4}
        assert counts_from_config("m", listed).num_layers == 4
        assert counts_from_config("m", {**config, "model_type": "qwen3_moe"}).num_layers == 8


@pytest.mark.parametrize(
    "extra",
    [
        {"layer_types": ["linear_attention", "full_attention"] * 4},
        {"layers_block_type": ["mamba", "attention"] * 4},
        {
            "max_window_layers": 3,
            "sliding_window_pattern": 4,
            "full_attention_interval": 4,
            "attn_layer_period": 2,
        },
        {"no_rope_layers": [1, 0] * 4, "no_rope_layer_interval": 4, "attn_type_list": [0, 1] * 4},
        {"layer_norm_eps": 1e-6, "decoder_layerdrop": 0.1, "chunk_size_feed_forward": 0, "mlp_bias": True},
        {
            "block_size": 16,
            "ffn_dim": 9,
            "intermediate_size_mlp": 9,
            "mlp_hidden_act": "silu",
            "mlp_ratio": 4,
        },
        {"num_kv_shared_layers": 2, "mamba_block_size": 4, "eos_token_id": [1, 2], "layer_pattern": None},
        {"mlp_layers": [], "interval": 0, "alternating": False, "num_blocks": 8, "swa_layers": [1, 2]},
        {"vision_config": {"layer_pattern": "AB"}, "rope_parameters": {"layers": [1]}, "is_layered": True},
        {"use_layer_norm": True, "hidden_act": "silu", "layer_impl": "eager", "mlp_kinds": ["a"] * 8},
    ],
)
def test_of_an_unknown_architecture_keys_of_other_parts_are_let_through(extra: dict[str, Any]) -> None:
    counts = counts_from_config("m", {"num_hidden_layers": 8, "num_experts": 4, **extra})
    assert (counts.num_layers, counts.is_assumed) == (8, True)


BASE = {"num_hidden_layers": 61, "n_routed_experts": 256}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**BASE, "first_k_dense_replace": 70}, "first_k_dense_replace is 70; expected a whole number from 0 to 61"),
        ({**BASE, "first_k_dense_replace": -1}, "first_k_dense_replace is -1; expected"),
        ({**BASE, "first_k_dense_replace": 61}, "not an MoE model: first_k_dense_replace 61 leaves none of 61"),
        ({**BASE, "first_k_dense_replace": "3"}, "first_k_dense_replace is '3'; expected a whole number"),
        ({**BASE, "first_k_dense_replace": 3.0}, "first_k_dense_replace is 3.0; expected"),
        ({**BASE, "first_k_dense_replace": True}, "first_k_dense_replace is True; expected"),
        ({**BASE, "first_k_dense_replace": [3]}, "first_k_dense_replace is .3.; expected"),
        ({**BASE, "moe_layer_freq": 0}, "moe_layer_freq is 0; expected a whole number of at least 1"),
        ({**BASE, "moe_layer_freq": [0, 1]}, "moe_layer_freq has 2 entries; expected a list of 61"),
        ({**BASE, "moe_layer_freq": [1] * 62}, "moe_layer_freq has 62 entries; expected a list of 61"),
        ({**BASE, "moe_layer_freq": [0, 2] + [1] * 59}, "expected 0 or 1 for each layer"),
        ({**BASE, "moe_layer_freq": [0] * 61}, "not an MoE model: moe_layer_freq marks 0 leaves none"),
        ({**BASE, "num_dense_layers": 62}, "num_dense_layers is 62"),
        ({**BASE, "interleave_moe_layer_step": 0}, "interleave_moe_layer_step is 0; expected"),
        ({**BASE, "moe_layers": [1, 61]}, r"moe_layers is \[1, 61\]; expected different layer indices from 0 to 60"),
        ({**BASE, "moe_layers": [1, 1]}, "expected different layer indices"),
        ({**BASE, "moe_layers": 3}, "moe_layers is 3; expected different layer indices"),
        ({**BASE, "moe_layers_enum": "3,,4"}, "moe_layers_enum is '3,,4'; expected"),
        ({**BASE, "moe_layers_enum": "3,61"}, "moe_layers_enum is .*; expected different layer indices from 0 to 60"),
        ({**BASE, "hybrid_override_pattern": "ME"}, "hybrid_override_pattern is 'ME'; expected 61 letters"),
        ({**BASE, "mlp_layer_types": ["sparse"] * 60 + ["odd"]}, "mlp_layer_types is .*each one of sparse"),
        ({**BASE, "is_moe_layer": [1] * 60 + ["1"]}, "is_moe_layer is .*; expected 0 or 1"),
        ({**BASE, "expert_layer_period": 2}, "expert_layer_offset is missing"),
        ({**BASE, "expert_layer_period": 2, "expert_layer_offset": 2}, "expert_layer_offset is 2; expected .* 0 to 1"),
        ({**BASE, "moe_layer_end_index": 5}, "moe_layer_start_index is missing"),
        ({**BASE, "moe_layer_start_index": 9, "moe_layer_end_index": 5}, "moe_layer_end_index is 5; expected at least"),
        ({**BASE, "moe_layer_start_index": 1, "moe_layer_end_index": 61}, "moe_layer_end_index is 61; expected"),
        ({**BASE, "mlp_only_layers": [70]}, r"mlp_only_layers is \[70\]; expected different layer indices"),
        ({**BASE, "decoder_sparse_step": 0}, "decoder_sparse_step is 0; expected"),
        ({**BASE, "block_configs": [1] * 61}, "block_configs is .*; expected an object for each layer"),
        ({**BASE, "first_k_dense_replace": 3, "num_dense_layers": 2}, "first_k_dense_replace 3 makes them 58, but .* 59"),
        (
            {**BASE, "first_k_dense_replace": 3, "mlp_layer_types": ["sparse"] * 61},
            "cannot tell the MoE layers of this model: .* give --layers",
        ),
        ({**BASE, "num_experts": 8}, "num_experts is 8 but n_routed_experts is 256; expected the same"),
        ({**BASE, "n_layers": 60}, "num_hidden_layers is 61 but n_layers is 60; expected the same"),
        ({**BASE, "n_group": 7}, "n_group is 7; expected a number that divides the 256 experts"),
        ({**BASE, "num_experts_per_tok": 300}, "num_experts_per_tok is 300; expected a whole number from 1 to 256"),
        ({**BASE, "num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected a whole number from 1 to 4096"),
        ({**BASE, "n_routed_experts": 10**30}, "n_routed_experts is .*; expected a whole number from 0 to 65536"),
        ({**BASE, "n_routed_experts": True}, "n_routed_experts is True"),
        ({**BASE, "n_routed_experts": -4}, "n_routed_experts is -4"),
        ({"n_routed_experts": 4}, "num_hidden_layers is missing"),
        ({"n_routed_experts": 4, "num_hidden_layers": 0}, "num_hidden_layers is 0; expected"),
        ({"num_hidden_layers": 3}, "not an MoE model: it has none of num_experts"),
        ({"num_hidden_layers": 3, "num_experts": 1}, "not an MoE model: num_experts is 1"),
        ({"num_hidden_layers": 3, "num_experts": None, "model_type": "apertus"}, "not an MoE model"),
        ({"num_hidden_layers": 3, "num_experts": 8, "enable_moe_block": False}, "not an MoE model: enable_moe_block"),
        ({"num_hidden_layers": 3, "num_experts": 8, "use_moe": "no"}, "use_moe is 'no'; expected true or false"),
        ({"num_hidden_layers": 2, "num_experts": [8, 4]}, "num_experts differs between layers, from 4 to 8"),
        ({"num_hidden_layers": 2, "num_experts": [8, 8, 8]}, "num_experts is .*; expected one number, or a list of 2"),
        ({"num_hidden_layers": 2, "num_experts": 8, "moe_topk": [2, 1]}, "moe_topk differs between layers"),
        (
            {"block_configs": [{"block_type": "moe", "n_routed_experts": n} for n in (4, 8)]},
            "n_routed_experts of block_configs differs between layers, from 4 to 8",
        ),
        (
            {"model_type": "longcat_flash", "num_layers": 28, "num_hidden_layers": 57, "n_routed_experts": 4},
            "num_layers is 28, num_hidden_layers is 57|num_hidden_layers is 57, num_layers is 28",
        ),
        ({"model_type": "longcat_flash", "num_hidden_layers": 28, "n_routed_experts": 4}, "expected num_layers"),
        (
            {key: {"num_hidden_layers": n, "num_experts": 4} for n, key in enumerate(("text_config", "llm_config"), 2)},
            "text_config and llm_config both describe a language model",
        ),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_key_and_value(config: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message) as raised:
        counts_from_config("m", config)
    assert str(raised.value).startswith("m: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


# What else is read


def test_all_other_counts() -> None:
    counts = counts_from_config(
        "m",
        {
            "architectures": ["DeepseekV3ForCausalLM"],
            "num_hidden_layers": 61,
            "first_k_dense_replace": 3,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "num_nextn_predict_layers": 1,
        },
    )
    assert (counts.num_groups, counts.num_shared_experts, counts.top_k, counts.num_draft_layers) == (
        8,
        1,
        8,
        1,
    )
    assert (counts.architecture, counts.num_hidden_layers) == ("DeepseekV3ForCausalLM", 61)
    assert counts.rule == "first_k_dense_replace 3"
    assert layers_text(counts) == "58 of 61 layers (3-60)"


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ({}, "num_groups", 1),
        ({"num_expert_group": 4}, "num_groups", 4),
        ({"n_group": None}, "num_groups", 1),
        ({"n_group": False}, "num_groups", 1),
        ({"n_group": 0}, "num_groups", 1),
        ({"moe_num_shared_experts": 2}, "num_shared_experts", 2),
        ({"num_shared_expert": [2, 2]}, "num_shared_experts", 2),
        ({"num_shared_expert": [2, 2], "use_mixed_mlp_moe": False}, "num_shared_experts", 0),
        ({"shared_expert_intermediate_size": 512}, "num_shared_experts", 1),
        ({"shared_expert_intermediate_size": 0}, "num_shared_experts", 0),
        ({"share_expert_dim": 512}, "num_shared_experts", 1),
        ({"model_type": "llama4_text"}, "num_shared_experts", 1),
        ({"moe_k": 3}, "top_k", 3),
        ({"moe_topk": [3, 3]}, "top_k", 3),
        ({"num_experts_per_token": 3}, "top_k", 3),
        ({}, "top_k", None),
        ({"num_mtp_modules": 3}, "num_draft_layers", 3),
        ({"num_mtp_modules": 3, "use_mtp": False}, "num_draft_layers", 0),
        ({"mtp_num_hidden_layers": 1}, "num_draft_layers", 1),
        ({"model_type": "mixtral"}, "architecture", "mixtral"),
        ({}, "architecture", None),
    ],
)
def test_fields_by_their_keys(keys: dict[str, Any], field: str, value: object) -> None:
    counts = counts_from_config("m", {"num_hidden_layers": 2, "num_experts": 8, **keys})
    assert getattr(counts, field) == value


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([0, 1], "2 of 48 layers (0-1)"),
        ([5], "1 of 48 layers (5)"),
        (range(1, 48, 2), "24 of 48 layers (1, 3, … 47)"),
        ([0, 1, 4, 7, 8], "5 of 48 layers (0-1, 4, 7-8)"),
        ([0, 3, 5, 9, 11, 15, 20, 30], "8 of 48 layers (0, 3, 5, 9, 11, …, 30)"),
    ],
)
def test_layers_in_words(layers: list[int], text: str) -> None:
    config = {"num_hidden_layers": 48, "num_experts": 8, "moe_layers": list(layers)}
    assert layers_text(counts_from_config("m", config)) == text


def test_the_caller_may_say_the_layers() -> None:
    config = {"num_hidden_layers": 4, "num_experts": 8}
    known = counts_from_config("m", config, layers=[3, 1])
    assert (known.moe_layers, known.num_layers, known.is_assumed) == ((1, 3), 2, False)
    number = counts_from_config("m", config, layers=3)
    assert (number.moe_layers, number.num_layers, layers_text(number)) == ((), 3, "3 of 4 layers")
    assert model_counts("deepseek-r1", layers=59).num_layers == 59
    for wrong in ([4], [], [1, 1], 0, -1, True):
        with pytest.raises(FormatError, match="layers is"):
            counts_from_config("m", config, layers=wrong)


# By file and by name


def test_a_file_its_folder_and_a_source(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 3, "num_local_experts": 8, "model_type": "mixtral"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    for place in (path, tmp_path, str(path), Source("standard input", path.read_bytes())):
        assert model_counts(place).num_layers == 3
    path.write_text("[1]")
    with pytest.raises(FormatError, match="expected a JSON object"):
        model_counts(path)
    path.write_text("{")
    with pytest.raises(FormatError, match="not valid JSON"):
        model_counts(path)


def test_a_file_of_a_known_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixtral-8x7b").mkdir()
    assert model_counts("mixtral-8x7b").num_layers == 32  # a folder of results, without a config.json
    (tmp_path / "mixtral-8x7b" / "config.json").write_text('{"num_hidden_layers": 2, "num_experts": 4}')
    assert model_counts("mixtral-8x7b").num_layers == 2


@pytest.mark.parametrize(
    ("name", "known", "has_bytes"),
    [
        ("DeepSeek-R1", "deepseek-r1", True),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3", True),
        ("deepseek_v3.2_exp", "deepseek-v3.2", True),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen3-235b-a22b", True),
        ("qwen3-235b", "qwen3-235b-a22b", True),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "qwen3-235b-a22b", False),
        ("moonshotai/Kimi-K2-Thinking", "kimi-k2", False),
        ("Llama-4-Maverick-17B-128E-Instruct", "llama-4-maverick", True),
        ("rednote-hilab/dots.llm1.inst", "dots.llm1", True),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b", True),
    ],
)
def test_known_models_by_name(name: str, known: str, has_bytes: bool) -> None:
    counts = model_counts(name)
    assert counts.name == known
    assert counts.moe_layers == MODELS[known].moe_layers
    assert (counts.expert_bytes is not None) == has_bytes


@pytest.mark.parametrize(
    ("name", "layers", "experts"),
    [
        ("deepseek-r1", 58, 256), ("deepseek-v2-lite", 26, 64), ("deepseek-v2", 59, 160), ("kimi-k2", 60, 384),
        ("mixtral-8x7b", 32, 8), ("qwen3-235b-a22b", 94, 128), ("qwen3-30b-a3b", 48, 128), ("llama-4-maverick", 24, 128),
        ("qwen3-next-80b-a3b", 48, 512), ("glm-4.5", 89, 160), ("glm-4.5-air", 45, 128), ("step-3.5-flash", 42, 288),
        ("ernie-4.5-300b-a47b", 51, 64), ("longcat-flash", 28, 512), ("gpt-oss-20b", 24, 32), ("minimax-m2", 62, 256),
        ("hunyuan-a13b", 32, 64), ("dots.llm1", 61, 128), ("qwen3-coder-480b-a35b", 62, 160), ("jamba-v0.1", 16, 16),
    ],
)  # fmt: skip
def test_known_counts(name: str, layers: int, experts: int) -> None:
    assert (MODELS[name].num_layers, MODELS[name].num_experts) == (layers, experts)


def test_known_models_are_complete() -> None:
    for name, counts in MODELS.items():
        assert counts.name == name
        assert counts.top_k
        assert counts.architecture
        assert counts.expert_bytes
        assert not counts.is_assumed


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(
        FormatError, match=r"'deepsek-v3': .*did you mean deepseek-v3, .*expected a config\.json"
    ):
        model_counts("deepsek-v3")
    # A dense model that is distilled from a known one is not that one.
    for name in ("DeepSeek-R1-Distill-Qwen-32B", "gpt-9", "", "no/such/config.json", "\0", "x" * 5000):
        with pytest.raises(FormatError, match=r"no known name; .*expected a config\.json"):
            model_counts(name)


def test_more_keys_than_any_configuration_has_are_refused() -> None:
    many = {f"key_{index}": 0 for index in range(2**16)}
    for config in (
        {**BASE, **many},
        {**BASE, "part": many},
        {**BASE, "part": {str(n): {"a": n} for n in range(2**15)}},
    ):
        with pytest.raises(FormatError, match="the configuration has more than 65536 keys"):
            counts_from_config("m", config)
    # Quantisations name every weight.
    assert counts_from_config("m", {**BASE, "quantization_config": many}).num_layers == 61


def test_hostile_values_are_shown_short() -> None:
    huge = {
        **BASE,
        "moe_layer_pattern": ["moe"] * 100_000,
        "deep": {"a" * 9: {"b": {"c": {"moe_layers": 1}}}},
    }
    with pytest.raises(FormatError) as raised:
        counts_from_config("m", huge)
    assert len(str(raised.value)) < 300
    with pytest.raises(FormatError, match=r"^m: x is "):
        Config("m", {"x": {"y": [1] * 10**5}}).refuse("x", "less")
