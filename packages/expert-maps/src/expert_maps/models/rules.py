# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which layers are MoE: a rule for each way in which configurations say it.

Each rule names the keys that it reads and whose code says so. Versions: vLLM 0.32.0 (``model_executor/models`` unless
another folder is given), transformers 5.19.0 (``models``), else as given. Layers are counted from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.models import layer_lists

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps.models.values import Config


@dataclass(frozen=True)
class Rule:
    """One way to say which layers are MoE.

    Attributes:
        keys: what it reads; it applies where one of them is there.
        find: from the configuration, the number of layers and of draft layers to the MoE layers, and a few words
            with the values that say so; None where it does not apply after all.
        source: whose code says so.
        is_list: it names the layers one by one, so that "all" is a statement too; a step of 1 is none.
    """

    keys: tuple[str, ...]
    find: Callable[[Config, int, int], tuple[list[int], str] | None]
    source: str
    is_list: bool = False


def _first_k_dense(config: Config, count: int, drafts: int) -> tuple[list[int], str] | None:
    del drafts
    first = config.whole("first_k_dense_replace", 0, count) or 0
    frequency, words = 1, f"first_k_dense_replace {first}" if config.has("first_k_dense_replace") else ""
    if config.has("moe_layer_freq") and not isinstance(config.get("moe_layer_freq"), (list, tuple)):
        frequency = config.whole("moe_layer_freq", 1) or 1
        words += f"{', ' if words else ''}moe_layer_freq {frequency}"
    if not words:
        return None
    # Sarvam counts every n-th from the first MoE layer, the others from layer 0.
    origin = first if config.model_type.startswith("sarvam") else 0
    return [layer for layer in range(first, count) if (layer - origin) % frequency == 0], words


def _leading(key: str) -> Callable[[Config, int, int], tuple[list[int], str] | None]:
    def find(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
        del drafts
        first = config.whole(key, 0, count) or 0
        return list(range(first, count)), f"{key} {first}"

    return find


def _every(key: str, remainder: int) -> Callable[[Config, int, int], tuple[list[int], str] | None]:
    """Every n-th layer, from the last of each n (remainder -1) or another."""

    def find(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
        del drafts
        step = config.whole(key, 1) or 1
        return [layer for layer in range(count) if (layer - remainder) % step == 0], f"{key} {step}"

    return find


def _decoder_sparse(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
    del drafts
    step = config.whole("decoder_sparse_step", 1) or 1
    dense = set(config.indices("mlp_only_layers", count)) if config.has("mlp_only_layers") else set()
    words = f"decoder_sparse_step {step}, {len(dense)} mlp_only_layers"
    return [layer for layer in range(count) if (layer + 1) % step == 0 and layer not in dense], words


def _period(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
    del drafts
    for key in ("expert_layer_period", "expert_layer_offset"):
        if not config.has(key):
            msg = f"{config.name}: {key} is missing; expected it beside expert_layer_period and expert_layer_offset"
            raise FormatError(msg)
    period = config.whole("expert_layer_period", 1) or 1
    offset = config.whole("expert_layer_offset", 0, period - 1)
    layers = [layer for layer in range(count) if layer % period == offset]
    return layers, f"expert_layer_period {period}, expert_layer_offset {offset}"


def _start_end(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
    del drafts
    config = layer_lists.text_of_pairs(config, ("moe_layer_start_index", "moe_layer_end_index"), count)
    start = config.whole("moe_layer_start_index", 0, count - 1)
    if start is None:
        msg = f"{config.name}: moe_layer_start_index is missing; expected it beside moe_layer_end_index and _interval"
        raise FormatError(msg)
    end = config.whole("moe_layer_end_index", -1, count - 1)
    last = count - 1 if end is None or end == -1 else end
    if last < start:
        config.refuse(
            "moe_layer_end_index", f"at least moe_layer_start_index, {start}, or -1 for the last layer"
        )
    interval = config.whole("moe_layer_interval", 1) or 1
    layers = [layer for layer in range(start, last + 1) if (layer + 1) % interval == 0]
    return layers, f"moe_layer_start_index {start}, moe_layer_end_index {last}, moe_layer_interval {interval}"


RULES: tuple[Rule, ...] = (
    Rule(
        ("first_k_dense_replace", "moe_layer_freq"),
        _first_k_dense,
        "vLLM deepseek_v2.py, glm4_moe.py, bailing_moe.py, openpangu.py, hy_v3.py, ../../models/kimi_k3/nvidia/model.py; "
        "sarvam.py and param2moe.py (Sarvam counts from the first MoE layer)",
    ),
    Rule(
        ("moe_layer_freq",),
        layer_lists.frequencies,
        "vLLM mimo_v2.py, ../../models/minimax_m3/nvidia/model.py; transformers minimax_m3_vl, step3p7",
        is_list=True,
    ),
    Rule(
        ("num_dense_layers",),
        _leading("num_dense_layers"),
        "vLLM afmoe.py, lfm2_moe.py; openPangu's own configuration",
    ),
    Rule(("dense_mlp_idx",), _leading("dense_mlp_idx"), "transformers inkling (configuration_inkling.py)"),
    Rule(
        ("moe_layer_num_skipped",),
        _leading("moe_layer_num_skipped"),
        "Tencent Hunyuan-Large and HunyuanImage-3 (configuration_hunyuan.py)",
    ),
    Rule(("moe_start_layer",), _leading("moe_start_layer"), "vLLM moondream3.py"),
    Rule(
        ("interleave_moe_layer_step",),
        _every("interleave_moe_layer_step", -1),
        "vLLM llama4.py; transformers llama4 (configuration_llama4.py)",
    ),
    Rule(("moe_layers",), layer_lists.indices, "transformers llama4 (configuration_llama4.py)", is_list=True),
    Rule(
        ("moe_layers_enum",),
        layer_lists.enumeration,
        "vLLM step3p5.py, step3_text.py; transformers step3p7 (draft layers may be listed)",
        is_list=True,
    ),
    Rule(
        ("hybrid_override_pattern",),
        layer_lists.pattern,
        "vLLM nemotron_h.py; transformers nemotron_h (configuration_nemotron_h.py)",
        is_list=True,
    ),
    Rule(
        ("layers_block_type", "layer_types"),
        layer_lists.block_types,
        "transformers nemotron_h (configuration_nemotron_h.py)",
        is_list=True,
    ),
    Rule(
        ("mlp_layer_types",),
        layer_lists.mlp_types,
        "vLLM laguna.py, exaone_moe.py, cohere2_moe.py; transformers glm4_moe_lite, deepseek_v4 (moe, hash_moe)",
        is_list=True,
    ),
    Rule(
        ("is_moe_layer",),
        layer_lists.flags,
        "K-EXAONE's config.json; NVIDIA Megatron-Bridge (its EXAONE provider)",
        is_list=True,
    ),
    Rule(
        ("expert_layer_period", "expert_layer_offset"),
        _period,
        "transformers jamba (configuration_jamba.py, layers_num_experts)",
    ),
    Rule(
        ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
        _start_end,
        "vLLM ernie45_moe.py, ernie45_vl_moe.py; transformers ernie4_5_moe (-1 is the last layer)",
    ),
    Rule(
        ("decoder_sparse_step", "mlp_only_layers"),
        _decoder_sparse,
        "vLLM qwen2_moe.py, qwen3_moe.py, qwen3_next.py, interns1_pro.py",
    ),
    Rule(("moe_layer_frequency",), _every("moe_layer_frequency", -1), "vLLM 0.9 arctic.py"),
    Rule(("moe_every_n_layers",), _every("moe_every_n_layers", 1), "vLLM bert_with_rope.py (Nomic)"),
    Rule(
        ("block_configs",),
        layer_lists.blocks,
        "vLLM ../../transformers_utils/model_arch_config_convertor.py",
        is_list=True,
    ),
)

RULE_KEYS = frozenset(key for rule in RULES for key in rule.keys)
"""Every key that a rule reads."""
