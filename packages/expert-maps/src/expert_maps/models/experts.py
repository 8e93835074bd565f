# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many experts a layer has: routed ones, groups, shared ones, and how many a token takes."""

from __future__ import annotations

from collections.abc import Mapping

from expert_maps import limits
from expert_maps._words import counted
from expert_maps.errors import FormatError
from expert_maps.models.nesting import EXPERT_KEYS, TEXT_AND_VISION
from expert_maps.models.values import Config

# Keys that switch experts off where they are false: ERNIE 4.5 and Step-3.5 (use_moe), Gemma 4 (enable_moe_block),
# Doge (is_moe).
_SWITCHES = ("use_moe", "enable_moe_block", "is_moe")

_GROUP_KEYS = ("n_group", "num_expert_group", "num_expert_groups")
_SHARED_KEYS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
# A shared expert that is stated by its width only: Qwen, Step, Granite.
_SHARED_WIDTHS = ("shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size")
# A shared expert that no key states (transformers 5.19, modeling_llama4.py).
_ONE_SHARED = ("llama4", "llama4_text")
_TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_selected_experts",
)
_DRAFT_KEYS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "num_mtp_modules",
    "mtp_num_layers",
)

EXPERT_COUNT_KEYS = frozenset(
    (*EXPERT_KEYS, *_SWITCHES, *_GROUP_KEYS, *_SHARED_KEYS, *_SHARED_WIDTHS, *_TOP_K_KEYS, *_DRAFT_KEYS)
)
"""Every key that this file reads."""


def routed_experts(config: Config, layers: int | None) -> int:
    """Return E.

    Raises:
        FormatError: no experts, two keys that disagree, or experts that differ between layers.
    """
    for key in _SWITCHES:
        # vLLM reads no switch of Step's models.
        if config.flag(key) is False and not config.model_type.startswith("step3"):
            msg = f"{config.name}: not an MoE model: {key} is false"
            raise FormatError(msg)
    found = {key: _experts(config, key, layers) for key in config.present(EXPERT_KEYS)}
    stated = {key: count for key, count in found.items() if count > 1}
    if not stated:
        why = ", ".join(f"{key} is {count}" for key, count in found.items())
        why = why or f"it has none of {', '.join(EXPERT_KEYS)}"
        msg = f"{config.name}: not an MoE model: {why}; expected the config.json of one with experts"
        raise FormatError(msg)
    if len(set(stated.values())) > 1:
        told = " but ".join(f"{key} is {count}" for key, count in stated.items())
        msg = f"{config.name}: {told}; expected the same number of experts"
        raise FormatError(msg)
    return next(iter(stated.values()))


def _experts(config: Config, key: str, layers: int | None) -> int:
    value = config.get(key)
    # ERNIE 4.5 VL states [text, vision]; vision experts are not counted (vLLM 0.32, ernie45_vl_moe.py).
    if (
        "ernie" in config.model_type
        and isinstance(value, (list, tuple))
        and len(value) == len(TEXT_AND_VISION)
    ):
        text = Config(config.name, {key: value[0]})
        return text.whole(key, 0, limits.MAX_EXPERTS) or 0
    return config.one_of_layers(key, layers, 0, limits.MAX_EXPERTS) or 0


def expert_groups(config: Config, experts: int) -> int:
    """Return the router's groups, 1 for none.

    Raises:
        FormatError: a number that does not divide E.
    """
    for key in config.present(_GROUP_KEYS):
        # Hunyuan states false for none.
        groups = 1 if config.get(key) is False else config.whole(key, 0, experts) or 1
        if experts % groups:
            config.refuse(key, f"a number that divides the {counted(experts, 'expert')}")
        return groups
    return 1


def shared_experts(config: Config, layers: int | None) -> int:
    """Return the shared experts of a layer, 0 for none."""
    if config.get("use_mixed_mlp_moe") is False:  # Hunyuan: its shared expert, switched off
        return 0
    for key in config.present(_SHARED_KEYS):
        return config.one_of_layers(key, layers, 0, limits.MAX_EXPERTS) or 0
    for key in config.present(_SHARED_WIDTHS):
        return int(bool(config.one_of_layers(key, layers)))
    return int(config.model_type in _ONE_SHARED)


def experts_per_token(config: Config, layers: int | None, experts: int) -> int | None:
    """Return how many experts a token takes, None where no key says."""
    for key in config.present(_TOP_K_KEYS):
        return config.one_of_layers(key, layers, 1, experts)
    return None


def draft_layers(config: Config) -> int:
    """Return the draft layers that the configuration states, 0 for none."""
    if config.get("use_mtp") is False:
        return 0
    for key in config.present(_DRAFT_KEYS):
        return config.whole(key, 0, limits.MAX_LAYERS) or 0
    return 0


def flattened(name: str, config: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration whose experts stand one level down with them on its own level.

    DBRX keeps them in ``ffn_config``, Yuan 2 in ``moe_config``, Moondream 3 and Mistral's own format in ``moe``
    (vLLM 0.32, ``transformers_utils/configs/{moondream3,mistral}.py``); a NAS model has them in every block.
    """
    result = dict(config)
    for container, names in _CONTAINERS.items():
        inner = result.get(container)
        if not isinstance(inner, Mapping):
            continue
        # What is not known in it stays there, and is refused by its name.
        result[container] = {key: value for key, value in inner.items() if key not in names}
        for key, outer in names.items():
            if inner.get(key) is not None and result.get(outer) is None:
                result[outer] = inner[key]
    return _with_block_experts(name, result)


_CONTAINERS: dict[str, dict[str, str]] = {
    "ffn_config": {
        "moe_num_experts": "moe_num_experts",
        "moe_top_k": "moe_top_k",
        "ffn_hidden_size": "moe_intermediate_size",
    },
    "moe_config": {"moe_num_experts": "moe_num_experts", "moe_top_k": "moe_top_k"},
    "moe": {
        "num_experts": "num_experts",
        "n_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_tok",
        "n_experts_per_tok": "num_experts_per_tok",
        "num_shared_experts": "n_shared_experts",
        "num_expert_groups": "n_group",
        "num_expert_groups_per_tok": "topk_group",
        "expert_hidden_dim": "moe_intermediate_size",
        "expert_inner_dim": "moe_intermediate_size",
        "first_k_dense_replace": "first_k_dense_replace",
        "route_every_n": "moe_layer_freq",
        "start_layer": "moe_start_layer",
    },
}


def _with_block_experts(name: str, config: dict[str, object]) -> dict[str, object]:
    blocks = config.get("block_configs")
    if not isinstance(blocks, (list, tuple)):
        return config
    counts = [block.get("n_routed_experts") for block in blocks if isinstance(block, Mapping)]
    stated = [count for count in counts if count]
    if not stated:
        return config
    key = "n_routed_experts of block_configs"
    found = Config(name, {key: stated}).one_of_layers(key, None, 1, limits.MAX_EXPERTS)
    return {**config, "n_routed_experts": found}
