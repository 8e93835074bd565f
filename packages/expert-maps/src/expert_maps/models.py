# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many MoE layers and experts a model has: known models by name, others by their config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class ModelCounts:
    """The counts that a placement must agree with.

    Attributes:
        name: the model.
        num_layers: L, MoE layers only, without draft layers.
        num_experts: E, routed experts.
        moe_layers: the absolute index of each MoE layer among all layers; empty where only their number is known.
        num_hidden_layers: all layers, dense ones too, without draft layers; 0 if not known.
    """

    name: str
    num_layers: int
    num_experts: int
    moe_layers: tuple[int, ...] = ()
    num_hidden_layers: int = 0


# From each model's published config.json.
MODELS: dict[str, ModelCounts] = {
    counts.name: counts
    for counts in (
        ModelCounts("deepseek-r1", 58, 256),
        ModelCounts("deepseek-v2-lite", 26, 64),
        ModelCounts("deepseek-v3", 58, 256),
        ModelCounts("kimi-k2", 60, 384),
        ModelCounts("mixtral-8x7b", 32, 8),
        ModelCounts("qwen3-235b", 94, 128),
        ModelCounts("qwen3-30b-a3b", 48, 128),
        ModelCounts("qwen3-next-80b", 48, 512),
    )
}

_EXPERT_KEYS = ("n_routed_experts", "num_experts", "num_local_experts")


def model_counts(model: str | Path) -> ModelCounts:
    """Look a model up by name, or read its Hugging Face ``config.json`` (or the folder that holds it).

    Raises:
        FormatError: neither a known name nor a readable configuration of an MoE model.
    """
    known = MODELS.get(str(model).lower())
    if known is not None:
        return known
    from pathlib import Path

    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        msg = f"model {str(model)!r}: no such file; expected a config.json or one of {', '.join(MODELS)}"
        raise FormatError(msg)
    config = read_json(path)
    if not isinstance(config, dict):
        msg = f"{path}: expected a JSON object with the model's configuration"
        raise FormatError(msg)
    # Multimodal models keep the language model's configuration one level down.
    text = config.get("text_config", config)
    return counts_from_config(str(path), text if isinstance(text, dict) else config)


def counts_from_config(name: str, config: Mapping[str, object]) -> ModelCounts:
    """Count a language model's MoE layers and experts by its Hugging Face configuration.

    Args:
        name: what to call the model.
        config: keys and values as in its ``config.json``.

    Raises:
        FormatError: it is no configuration of an MoE model.
    """
    experts = next((value for key in _EXPERT_KEYS if (value := _count(config, key))), 0)
    layers = _count(config, "num_hidden_layers")
    if not experts or not layers:
        msg = f"{name}: not an MoE model; expected num_hidden_layers and one of {', '.join(_EXPERT_KEYS)}"
        raise FormatError(msg)
    first_dense = _count(config, "first_k_dense_replace")
    frequency = _count(config, "moe_layer_freq") or 1
    step = _count(config, "decoder_sparse_step") or 1
    dense = config.get("mlp_only_layers")
    dense = dense if isinstance(dense, list) else []
    moe_layers = [
        layer
        for layer in range(layers)
        if layer >= first_dense and layer % frequency == 0 and (layer + 1) % step == 0 and layer not in dense
    ]
    return ModelCounts(name, len(moe_layers), experts, tuple(moe_layers), layers)


def _count(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
