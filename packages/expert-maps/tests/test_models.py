# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from expert_maps import FormatError
from expert_maps.models import MODELS, model_counts

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, config: object) -> Path:
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("config", "layers", "experts"),
    [
        # DeepSeek-V3, Kimi-K2, Qwen3-235B, Mixtral, and a nested multimodal configuration.
        (
            {
                "num_hidden_layers": 61,
                "n_routed_experts": 256,
                "first_k_dense_replace": 3,
                "moe_layer_freq": 1,
            },
            58,
            256,
        ),
        ({"num_hidden_layers": 61, "n_routed_experts": 384, "first_k_dense_replace": 1}, 60, 384),
        (
            {"num_hidden_layers": 94, "num_experts": 128, "decoder_sparse_step": 1, "mlp_only_layers": []},
            94,
            128,
        ),
        ({"num_hidden_layers": 32, "num_local_experts": 8}, 32, 8),
        ({"text_config": {"num_hidden_layers": 4, "num_experts": 16, "mlp_only_layers": [0, 2]}}, 2, 16),
        ({"num_hidden_layers": 10, "num_experts": 4, "decoder_sparse_step": 2}, 5, 4),
    ],
)
def test_counts_from_a_configuration(
    tmp_path: Path, config: dict[str, object], layers: int, experts: int
) -> None:
    path = write(tmp_path / "config.json", config)
    for place in (path, tmp_path, str(path)):
        counts = model_counts(place)
        assert (counts.num_layers, counts.num_experts) == (layers, experts)


def test_known_models_go_by_name_whatever_the_case() -> None:
    assert model_counts("DeepSeek-R1") == MODELS["deepseek-r1"]
    assert (MODELS["deepseek-r1"].num_layers, MODELS["deepseek-r1"].num_experts) == (58, 256)


def test_what_is_no_moe_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no such file; expected a config\.json or one of deepseek"):
        model_counts("gpt-9")
    with pytest.raises(FormatError, match="not an MoE model"):
        model_counts(write(tmp_path / "dense.json", {"num_hidden_layers": 3}))
    with pytest.raises(FormatError, match="expected a JSON object"):
        model_counts(write(tmp_path / "list.json", [1]))
