# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes of an expert: every quantisation that is known, and None with a reason for every other."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from expert_maps import FormatError
from expert_maps.models import MODELS, counts_from_config, expert_bytes, expert_size, model_counts

if TYPE_CHECKING:
    from pathlib import Path

V3 = {"hidden_size": 7168, "moe_intermediate_size": 2048, "torch_dtype": "bfloat16"}
NUMBERS = 3 * 7168 * 2048
ROWS = 2048 + 2048 + 7168
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


def compressed(form: str, **weights: object) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"dynamic": True}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


TINY = {"hidden_size": 8, "moe_intermediate_size": 4, "dtype": "bfloat16"}
INT8_ROWS = compressed("int-quantized", num_bits=8, type="int", strategy="channel")
INT4_GROUPS = NUMBERS // 2 + NUMBERS // 128 * 2


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        # Without scales: 44,040,192; a float32 for each 128 x 128 block, a row or a projection.
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, NUMBERS + 3 * 56 * 16 * 4),
        ({"quant_method": "fp8", "weight_block_size": [100, 100]}, NUMBERS + 3 * 72 * 21 * 4),
        ({"quant_method": "fp8"}, NUMBERS + 3 * 4),
        ({"quant_method": "fp8", "activation_scheme": "static"}, NUMBERS + 6 * 4),
        ({"quant_method": "fbgemm_fp8"}, NUMBERS + ROWS * 4),
        (compressed("int-quantized", num_bits=8, type="int", strategy="channel"), NUMBERS + ROWS * 4),
        (compressed("float-quantized", num_bits=8, type="float", strategy="channel"), NUMBERS + ROWS * 4),
        (compressed("float-quantized", num_bits=8, type="float", strategy="tensor"), NUMBERS + 3 * 4),
        (
            compressed(
                "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 128]
            ),
            NUMBERS + 3 * 56 * 16 * 4,
        ),
        (
            compressed(
                "pack-quantized", num_bits=4, type="int", strategy="group", group_size=128, symmetric=True
            ),
            INT4_GROUPS,
        ),
        (
            compressed(
                "pack-quantized", num_bits=4, type="int", strategy="group", group_size=128, symmetric=False
            ),
            INT4_GROUPS + NUMBERS // 128 // 2,
        ),
        (compressed("pack-quantized", num_bits=8, type="int", strategy="channel"), NUMBERS + ROWS * 2),
        (compressed("nvfp4-pack-quantized", num_bits=4, type="float"), NUMBERS // 2 + NUMBERS // 16 + 6 * 4),
        (compressed("mxfp4-pack-quantized", num_bits=4, type="float"), NUMBERS // 2 + NUMBERS // 32),
        # Zero points of four bits beside the scales; with sorted inputs their order.
        (AWQ, INT4_GROUPS + NUMBERS // 128 // 2),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, INT4_GROUPS + NUMBERS // 128 // 2),
        (GPTQ, INT4_GROUPS + NUMBERS // 128 // 2),
        ({**GPTQ, "desc_act": True}, INT4_GROUPS + NUMBERS // 128 // 2 + (7168 + 7168 + 2048) * 4),
        ({**GPTQ, "group_size": -1}, NUMBERS // 2 + ROWS * 2 + ROWS // 2),
        ({"quant_method": "mxfp4"}, NUMBERS // 2 + NUMBERS // 32),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, NUMBERS // 2 + NUMBERS // 16 + 6 * 4),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "NVFP4",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}}},
            },
            NUMBERS // 2 + NUMBERS // 16 + 6 * 4,
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, NUMBERS + 6 * 4),
    ],
)
def test_bytes_by_quantisation(quant: dict[str, Any], expected: int) -> None:
    size = expert_size({**V3, "quantization_config": quant})
    assert size.num_bytes == expected, size.rule
    assert "3 projections of 7168 x 2048" in size.rule
    # Also where a multimodal model says it outside.
    nested = {"text_config": {**V3, "num_experts": 8}, "quantization_config": quant}
    assert expert_bytes(nested) == expected


@pytest.mark.parametrize(
    ("quant", "reason"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'"),
        ({}, "quant_method is None"),
        ({"quant_method": ["fp8"]}, "quant_method is"),
        ("fp8", "quantization_config is 'fp8'; expected an object"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size is"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size is"),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.3.mlp.experts"]},
            "perhaps its experts",
        ),
        ({**AWQ, "modules_to_not_convert": ["re:.*mlp.*"]}, "perhaps its experts"),
        ({**AWQ, "bits": 5}, "5 bits"),
        ({**AWQ, "group_size": 0}, "group_size .* is 0"),
        ({**GPTQ, "dynamic": {"-:.*": {}}}, "dynamic"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8"}, "quant_algo is 'W4A8'"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32}, "groups of 32"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "0 groups"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {}}, "b": {}}},
            "2 groups",
        ),
        (compressed("int-quantized", num_bits=4, type="int", strategy="group"), "not known here"),
        (compressed("pack-quantized", num_bits=4, type="int", strategy="group"), "group_size .* is None"),
    ],
)
def test_what_is_not_known_is_none_with_the_reason(quant: object, reason: str) -> None:
    size = expert_size({**V3, "quantization_config": quant})
    assert size.num_bytes is None
    assert re.search(reason, size.rule), size.rule


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (V3, 88_080_384),
        ({**V3, "torch_dtype": None, "dtype": "torch.float32"}, NUMBERS * 4),
        ({**V3, "torch_dtype": "float16"}, NUMBERS * 2),
        ({**V3, "quantization_config": None}, NUMBERS * 2),
        # What a model leaves unquantised that is no routed expert does not matter.
        (
            {
                **V3,
                "quantization_config": {
                    "quant_method": "fp8",
                    "modules_to_not_convert": [
                        "lm_head",
                        "model.layers.*.mlp.gate",
                        "re:.*mlp.shared_experts.*",
                    ],
                },
            },
            NUMBERS + 12,
        ),
        (
            {"model_type": "longcat_flash", "hidden_size": 8, "expert_ffn_hidden_size": 4, "dtype": "bf16"},
            192,
        ),
        ({"model_type": "mixtral", "hidden_size": 8, "intermediate_size": 4, "dtype": "bfloat16"}, 192),
        ({"model_type": "gpt_oss", "hidden_size": 8, "intermediate_size": 4, "dtype": "bfloat16"}, 192 + 32),
        # As published: no type of what is not quantised. Two projections of 4 x 8 and one of 8 x 4 in four bits, a byte of
        # scale for up to 32 inputs, and biases in bfloat16.
        (
            {
                "model_type": "gpt_oss",
                "hidden_size": 8,
                "intermediate_size": 4,
                "quantization_config": {
                    "quant_method": "mxfp4",
                    "modules_to_not_convert": [
                        "model.layers.*.self_attn",
                        "model.layers.*.mlp.router",
                        "lm_head",
                    ],
                },
            },
            2 * 4 * (4 + 1) + 8 * (2 + 1) + 2 * 16,
        ),
        # MindIE: int8, and of each of 4 + 4 + 8 outputs a scale and an offset in bfloat16.
        ({**TINY, "quantize": "w8a8_dynamic"}, 96 + 64),
        ({**TINY, "quantize": "w8a8_dynamic", "quantization_config": {}}, 96 + 64),
        ({**TINY, "quantize": "float"}, 192),
        ({**TINY, "quantize": "w8a8_dynamic", "quantization_config": INT8_ROWS}, 96 + 16 * 4),
        ({"model_type": "dbrx", "d_model": 8, "ffn_config": {"ffn_hidden_size": 4}, "dtype": "float16"}, 192),
        (
            {"model_type": "nemotron_h", "hidden_size": 8, "moe_intermediate_size": 4, "dtype": "bfloat16"},
            128,
        ),
        ({"hidden_size": 8, "moe_latent_size": 2, "moe_intermediate_size": 4, "dtype": "bfloat16"}, 48),
        ({"hidden_size": 8, "moe_intermediate_size": [4, 4], "dtype": "bfloat16"}, 192),
        (
            {
                "model_type": "ernie4_5_vl",
                "hidden_size": 8,
                "moe_intermediate_size": [4, 2],
                "dtype": "bfloat16",
            },
            192,
        ),
    ],
)
def test_bytes_by_shape(config: dict[str, Any], expected: int) -> None:
    assert expert_bytes(config) == expected


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hidden_size": 8, "moe_intermediate_size": 4}, "neither dtype nor torch_dtype"),
        ({"hidden_size": 8, "moe_intermediate_size": 4, "dtype": "auto"}, "dtype is 'auto'"),
        ({"moe_intermediate_size": 4}, "hidden_size is missing"),
        ({"hidden_size": 8}, "moe_intermediate_size is missing"),
        (
            {"hidden_size": 8, "intermediate_size": 4, "model_type": "new"},
            "whether intermediate_size is an expert's in new",
        ),
        ({"hidden_size": 8, "moe_intermediate_size": [4, 5]}, "differs between layers"),
        ({"hidden_size": 8, "moe_intermediate_size": 4, "model_type": "jetmoe"}, "no plain MLPs"),
        (
            {**V3, "quantize": "w4a8_dynamic"},
            "quantize is 'w4a8_dynamic', which is not known here; known are W8A8_DYNAMIC",
        ),
        ({**V3, "quantize": "w8a8_dynamic", "torch_dtype": None}, "neither dtype nor torch_dtype"),
        (
            {**V3, "quantize": "w8a8_dynamic", "quantization_config": {"quant_method": "fp8"}},
            "quantize is 'w8a8_dynamic', but quant_method fp8 says float8",
        ),
        ({**V3, "expert_dtype": "fp4"}, "expert_dtype is 'fp4'"),
    ],
)
def test_shapes_and_types_that_are_not_told(config: dict[str, Any], reason: str) -> None:
    size = expert_size(config)
    assert (size.num_bytes, reason in size.rule) == (None, True), size.rule


def test_a_type_by_hand_is_without_scales() -> None:
    quantised = {**V3, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert expert_bytes(quantised, "int8") == 44_040_192
    assert expert_bytes(quantised, "bfloat16") == 88_080_384
    with pytest.raises(FormatError, match="dtype is 'int3'; expected one of bfloat16"):
        expert_bytes(V3, "int3")
    with pytest.raises(FormatError, match="hidden_size is 'x'; expected a whole number of at least 1"):
        expert_bytes({**V3, "hidden_size": "x"})


def test_counts_carry_the_bytes() -> None:
    config = {**V3, "num_hidden_layers": 2, "num_experts": 8}
    counts = counts_from_config("m", config)
    assert (counts.expert_bytes, counts.expert_bytes_rule) == (
        88_080_384,
        "bfloat16, 3 projections of 7168 x 2048",
    )
    assert MODELS["deepseek-v3"].expert_bytes == 44_050_944
    # Three times 2880 x 2880 in four bits, a byte for 32, and biases in bfloat16.
    assert MODELS["gpt-oss-20b"].expert_bytes == 13_219_200 + 3 * 2880 * 2


def test_files_beside_a_configuration_state_the_quantisation(tmp_path: Path) -> None:
    config = {**V3, "num_hidden_layers": 2, "num_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_counts(tmp_path).expert_bytes == 88_080_384
    for name in ("quant_model_description.json", "hf_quant_config.json"):
        (tmp_path / name).write_text("{}")
        counts = model_counts(tmp_path)
        assert (counts.expert_bytes, name in counts.expert_bytes_rule) == (None, True)
        (tmp_path / name).unlink()
    weights = {f"model.layers.1.mlp.experts.{expert}.up_proj.weight": "W8A8_DYNAMIC" for expert in range(2)}
    others = {"model_quant_type": "W8A8", "model.layers.1.mlp.shared_experts.up_proj.weight": "FLOAT"}
    path = tmp_path / "quant_model_description_w8a8_dynamic.json"
    rows = 2048 + 2048 + 7168
    for kinds, expected, words in (
        (weights, 44_040_192 + 2 * rows * 2, "says W8A8_DYNAMIC of the experts"),
        (dict.fromkeys(weights, "FLOAT"), 88_080_384, "bfloat16"),
        (
            dict.fromkeys(weights, "W4A8_DYNAMIC"),
            None,
            "says W4A8_DYNAMIC of the experts, which is not known here",
        ),
        (
            {**weights, "m.experts.7.w.weight": "FLOAT"},
            None,
            "says 'FLOAT' and 'W8A8_DYNAMIC' of the experts' weights",
        ),
    ):
        path.write_text(json.dumps({**others, **kinds}))
        counts = model_counts(tmp_path)
        assert (counts.expert_bytes, words in counts.expert_bytes_rule) == (expected, True), (
            counts.expert_bytes_rule
        )
    for broken, words in (("[1]", "is no JSON object that names the quantisation"), ("[", "not valid JSON")):
        path.write_text(broken)
        counts = model_counts(tmp_path)
        assert (counts.num_layers, counts.expert_bytes, words in counts.expert_bytes_rule) == (2, None, True)
