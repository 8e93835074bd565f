# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Multimodal models: where in a configuration the language model's is."""

from __future__ import annotations

from collections.abc import Mapping

from expert_maps.errors import FormatError

# Under which keys multimodal models keep their language model's configuration: transformers 5.19 (text_config; Qwen3-Omni's
# thinker_config around it), DeepSeek-VL2 and Unlimited-OCR (language_config), InternVL and Ming (llm_config).
_LANGUAGE_KEYS = (
    "thinker_config",
    "text_config",
    "language_config",
    "llm_config",
    "language_model_config",
    "language_model",
    "text_model",
    "llm",
)
_DEEPEST = 4

# What a configuration says once for all its parts, perhaps outside the language model's.
_SHARED_KEYS = ("quantization_config", "compression_config", "quantize", "torch_dtype", "dtype")

TEXT_AND_VISION = ("text", "vision")
"""What ERNIE 4.5 VL gives a number for, in this order, where other models give one."""

EXPERT_KEYS = (
    "num_experts",
    "moe_num_experts",
    "n_routed_experts",
    "num_local_experts",
    "num_routed_experts",
)
"""The names of E: vLLM 0.32 (``model_arch_config_convertor.py``), in its order; the last is openPangu's own."""


def language_model(name: str, config: Mapping[str, object]) -> dict[str, object]:
    """Return the language model's part of a configuration, with what holds for all parts.

    Where both levels state experts, the inner one counts; the experts of vision, audio and speech never do.

    Raises:
        FormatError: two inner configurations state different experts.
    """
    return _find(name, config, 0)


def has_experts(config: Mapping[str, object]) -> bool:
    """Whether a configuration states routed experts."""
    if any(config.get(key) not in (None, 0) for key in EXPERT_KEYS):
        return True
    if any(isinstance(config.get(key), Mapping) for key in ("moe", "moe_config")):
        return True
    inner = config.get("ffn_config")
    blocks = config.get("block_configs")
    return (isinstance(inner, Mapping) and inner.get("moe_num_experts") is not None) or (
        isinstance(blocks, list)
        and any(isinstance(block, Mapping) and "n_routed_experts" in block for block in blocks)
    )


def _find(name: str, config: Mapping[str, object], depth: int) -> dict[str, object]:
    inner: list[tuple[str, dict[str, object]]] = []
    for key in _LANGUAGE_KEYS:
        part = config.get(key)
        if isinstance(part, Mapping) and part and depth < _DEEPEST:
            inner.append((key, _find(name, part, depth + 1)))
    found = [(key, part) for key, part in inner if has_experts(part)]
    if len(found) > 1 and any(part != found[0][1] for _, part in found):
        keys = " and ".join(key for key, _ in found)
        msg = f"{name}: {keys} both describe a language model with experts; expected one"
        raise FormatError(msg)
    if found:
        chosen = found[0][1]
    elif inner and not has_experts(config):
        chosen = inner[0][1]
    else:
        return dict(config)
    shared = {key: config[key] for key in _SHARED_KEYS if config.get(key) is not None}
    # The outer class names the model; the inner type names its rules.
    architectures = {"architectures": config["architectures"]} if config.get("architectures") else {}
    return {**shared, **{key: value for key, value in chosen.items() if value is not None}, **architectures}
